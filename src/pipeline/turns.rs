use arrayvec::ArrayVec;

use super::BURST;

/// In which order the packets of a burst leave: those of one outer flow to one next hop together, as they came among
/// each other.
#[derive(Debug)]
pub struct Turns {
    /// Of each packet next hop, source port and place in the burst, from the highest bits on: no two are the same.
    keys: ArrayVec<u64, BURST>,
}

impl Turns {
    /// The turns of packets with these next hops and source ports, up to a burst of them.
    pub fn new(flows: impl Iterator<Item = (u32, u16)>) -> Self {
        let key = |((hop, port), place): ((u32, u16), u64)| u64::from(hop) << 32 | u64::from(port) << 16 | place;
        let mut keys: ArrayVec<_, BURST> = flows.zip(0_u64..).map(key).take(BURST).collect();
        keys.sort_unstable();
        Self { keys }
    }

    /// The places in the burst, in the order in which their packets leave.
    pub fn places(&self) -> impl Iterator<Item = usize> {
        self.keys.iter().map(|key| usize::from((key & 0xffff) as u16))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_flow_leaves_in_one_piece_and_in_order(
            flows in proptest::collection::vec((0u32..3, 0u16..5), 0..=BURST)
        ) {
            let places: Vec<_> = Turns::new(flows.iter().copied()).places().collect();
            prop_assert_eq!(places.len(), flows.len());
            let mut left: Vec<_> = places.iter().map(|&place| (flows[place], place)).collect();
            prop_assert!(left.is_sorted(), "{left:?}");
            left.dedup();
            prop_assert_eq!(left.len(), flows.len());
        }
    }

    #[test]
    fn what_exceeds_a_burst_has_no_turn() {
        let turns = Turns::new((0..).map(|hop| (hop, u16::MAX)).take(BURST + 1));
        assert!(turns.places().eq(0..BURST));
        assert!(Turns::new(std::iter::once((u32::MAX, u16::MAX))).places().eq([0]));
    }
}
