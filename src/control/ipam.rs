//! Which addresses a pod gets: pure choice out of the node's ranges.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::api::Range;
use crate::config::{AddressRange, from_bits, to_bits};

/// Why a pod cannot have the addresses that it should.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("address {0} is outside of this node's ranges ({1}); choose one inside, or leave the choice to the node")]
    Foreign(IpAddr, String),
    #[error("address {0} is reserved: the first of a range is the VXLAN device's, the last is never given to a pod")]
    Reserved(IpAddr),
    #[error("address {0} is excluded by ipam.exclude ({1}); choose another one")]
    Excluded(IpAddr, AddressRange),
    #[error("address {0} is taken (see `podwire ipam list`); choose another one")]
    Taken(IpAddr),
    #[error("address {0} is a second one of its family; a pod has at most one of each")]
    Second(IpAddr),
    #[error("no address is free in {range}; {}detach a pod, or give the node a larger range", resting(*.next_in))]
    Exhausted {
        range: IpNet,
        /// How soon a released one can be given out again, if any rests.
        next_in: Option<Duration>,
    },
}

fn resting(next_in: Option<Duration>) -> String {
    match next_in {
        Some(next_in) => {
            format!("the next released one leaves quarantine in {} s: wait for it, ", next_in.as_secs() + 1)
        }
        None => String::new(),
    }
}

/// All that the choice depends on.
#[derive(Debug)]
pub struct Pool<'p> {
    pub cidrs: &'p [IpNet],
    /// Never given out; apart from each other.
    pub exclude: &'p [AddressRange],
    /// Nobody else can have these.
    pub taken: BTreeSet<IpAddr>,
    /// Released ones, and for how long each is given to nobody who does not ask for it.
    pub quarantine: BTreeMap<IpAddr, Duration>,
    /// The one of each range that was given out last.
    pub last: &'p [IpAddr],
}

impl Pool<'_> {
    /// The addresses of a new pod: exactly `requested`, or when that is empty one of each range, the next free one after
    /// the last that was given out. Takes as many steps as addresses are taken, in quarantine or excluded as ranges.
    pub fn choose(&self, requested: &[IpAddr]) -> Result<Vec<IpAddr>, AddressError> {
        if requested.is_empty() {
            return self.cidrs.iter().map(|cidr| self.next_free(cidr)).collect();
        }
        for (index, address) in requested.iter().enumerate() {
            self.check(*address)?;
            if requested[..index].iter().any(|earlier| earlier.is_ipv4() == address.is_ipv4()) {
                return Err(AddressError::Second(*address));
            }
        }
        Ok(requested.to_vec())
    }

    /// How full a range is.
    pub fn usage(&self, cidr: &IpNet) -> Range {
        let excluded = self.exclude.iter().map(|range| overlap(cidr, range)).sum::<u128>();
        let capacity = inner(cidr).map_or(0, |(first, last)| last - first + 1) - excluded;
        let count = |addresses: usize| u64::try_from(addresses).unwrap_or(u64::MAX);
        let is_resting = |address: &&IpAddr| !self.taken.contains(*address);
        let of_range = |address: &&IpAddr| cidr.contains(*address);
        let taken = self.taken.iter().filter(of_range);
        let resting = self.quarantine.keys().filter(of_range).filter(is_resting);
        let away = taken.clone().chain(resting.clone()).filter(|address| self.may_give(cidr, **address));
        Range {
            cidr: *cidr,
            capacity: u64::try_from(capacity).unwrap_or(u64::MAX),
            used: count(taken.count()),
            quarantined: count(resting.count()),
            free: u64::try_from(capacity - away.count() as u128).unwrap_or(u64::MAX),
        }
    }

    fn check(&self, address: IpAddr) -> Result<(), AddressError> {
        let Some(cidr) = self.cidrs.iter().find(|cidr| cidr.contains(&address)) else {
            let ranges: Vec<_> = self.cidrs.iter().map(ToString::to_string).collect();
            return Err(AddressError::Foreign(address, ranges.join(", ")));
        };
        if address == cidr.network() || address == cidr.broadcast() {
            return Err(AddressError::Reserved(address));
        }
        if let Some(range) = self.exclusion(address) {
            return Err(AddressError::Excluded(address, *range));
        }
        if self.taken.contains(&address) {
            return Err(AddressError::Taken(address));
        }
        Ok(())
    }

    fn next_free(&self, cidr: &IpNet) -> Result<IpAddr, AddressError> {
        let found = inner(cidr).and_then(|(first, last)| {
            let given = self.last.iter().find(|given| cidr.contains(*given)).map(|given| to_bits(*given));
            let start = given.map(|given| given + 1).filter(|next| (first..=last).contains(next)).unwrap_or(first);
            self.first_free(cidr, start, last).or_else(|| self.first_free(cidr, first, start))
        });
        found.ok_or_else(|| {
            let may_come = |(address, wait): (&IpAddr, &Duration)| {
                (self.may_give(cidr, *address) && !self.taken.contains(address)).then_some(*wait)
            };
            AddressError::Exhausted { range: *cidr, next_in: self.quarantine.iter().filter_map(may_come).min() }
        })
    }

    /// The first address between `value` and `last` that can be given out.
    fn first_free(&self, cidr: &IpNet, mut value: u128, last: u128) -> Option<IpAddr> {
        while value <= last {
            let address = from_bits(cidr.addr(), value);
            match self.exclusion(address) {
                Some(range) => value = to_bits(range.last()),
                None if !self.taken.contains(&address) && !self.quarantine.contains_key(&address) => {
                    return Some(address);
                }
                None => {}
            }
            // The last address of its family is never inside.
            value += 1;
        }
        None
    }

    /// Whether a pod could have the address if nobody had it.
    fn may_give(&self, cidr: &IpNet, address: IpAddr) -> bool {
        let is_inner = inner(cidr).is_some_and(|(first, last)| (first..=last).contains(&to_bits(address)));
        cidr.contains(&address) && is_inner && self.exclusion(address).is_none()
    }

    fn exclusion(&self, address: IpAddr) -> Option<&AddressRange> {
        self.exclude.iter().find(|range| range.contains(address))
    }
}

/// The first and the last address of a range that pods can have, if it has room for any.
fn inner(cidr: &IpNet) -> Option<(u128, u128)> {
    let (first, last) = (to_bits(cidr.network()), to_bits(cidr.broadcast()));
    (last - first >= 2).then(|| (first + 1, last - 1))
}

/// How many of the addresses that pods can have are excluded by `range`.
fn overlap(cidr: &IpNet, range: &AddressRange) -> u128 {
    let Some((first, last)) = inner(cidr).filter(|_| cidr.addr().is_ipv6() == range.first().is_ipv6()) else {
        return 0;
    };
    let (from, to) = (first.max(to_bits(range.first())), last.min(to_bits(range.last())));
    if from <= to { to - from + 1 } else { 0 }
}

/// What holds of any valid configuration: pods get addresses one by one, each once and inside its range, as many as
/// [`Pool::usage`] promises.
#[cfg(fuzzing)]
pub fn fuzz(config: &crate::config::Config) {
    const PODS: u64 = 64;
    let cidrs = &config.node.pod_cidrs[..];
    let mut last = Vec::new();
    let mut taken = BTreeSet::new();
    for count in 0..PODS {
        let pool = Pool {
            cidrs,
            exclude: &config.ipam.exclude,
            taken: taken.clone(),
            quarantine: BTreeMap::new(),
            last: &last,
        };
        let usage: Vec<Range> = cidrs.iter().map(|cidr| pool.usage(cidr)).collect();
        assert!(usage.iter().all(|range| range.used == count && range.free <= range.capacity), "{usage:?}");
        let Ok(chosen) = pool.choose(&[]) else {
            assert!(usage.iter().any(|range| range.free == 0), "{usage:?}");
            return;
        };
        assert!(usage.iter().all(|range| range.free > 0) && chosen.len() == cidrs.len(), "{usage:?}");
        for (address, cidr) in chosen.iter().zip(cidrs) {
            assert!(cidr.contains(address) && pool.check(*address).is_ok(), "{address} of {cidr}");
        }
        taken.extend(&chosen);
        last = chosen;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn excluded(list: &[&str]) -> Vec<AddressRange> {
        list.iter().map(|range| range.parse().unwrap()).collect()
    }

    fn pool<'p>(cidrs: &'p [IpNet], taken: &[&str], last: &'p [IpAddr]) -> Pool<'p> {
        Pool { cidrs, exclude: &[], taken: ips(taken).into_iter().collect(), quarantine: BTreeMap::new(), last }
    }

    #[test]
    fn a_pod_gets_the_next_free_address_of_each_family_after_the_last_given() {
        let cidrs = nets(&["10.244.1.0/24", "fd00:244:1::/64"]);
        let taken = ["10.244.1.1", "10.244.1.2", "10.244.1.4", "fd00:244:1::1"];
        assert_eq!(pool(&cidrs, &taken, &[]).choose(&[]), Ok(ips(&["10.244.1.3", "fd00:244:1::2"])));
        let last = ips(&["10.244.1.3", "fd00:244:1:0:ffff:ffff:ffff:fffe"]);
        assert_eq!(
            pool(&cidrs, &taken, &last).choose(&[]),
            Ok(ips(&["10.244.1.5", "fd00:244:1::2"])),
            "from the start"
        );
        let elsewhere = ips(&["10.9.9.9"]);
        assert_eq!(pool(&cidrs, &[], &elsewhere).choose(&[]), Ok(ips(&["10.244.1.1", "fd00:244:1::1"])));
    }

    #[test]
    fn the_first_and_the_last_address_are_never_given() {
        let cidrs = nets(&["10.244.1.0/30"]);
        let exhausted = AddressError::Exhausted { range: cidrs[0], next_in: None };
        assert_eq!(pool(&cidrs, &["10.244.1.1"], &[]).choose(&[]), Ok(ips(&["10.244.1.2"])));
        assert_eq!(pool(&cidrs, &["10.244.1.1", "10.244.1.2"], &[]).choose(&[]), Err(exhausted));
        for reserved in ips(&["10.244.1.0", "10.244.1.3"]) {
            assert_eq!(pool(&cidrs, &[], &[]).choose(&[reserved]), Err(AddressError::Reserved(reserved)));
        }
    }

    #[test]
    fn ranges_too_small_for_a_pod_and_at_the_end_of_the_address_space_are_exhausted_not_wrapped() {
        for net in
            ["10.244.1.0/32", "10.244.1.0/31", "255.255.255.254/31", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"]
        {
            let cidrs = nets(&[net]);
            let exhausted = AddressError::Exhausted { range: cidrs[0], next_in: None };
            assert_eq!(pool(&cidrs, &[], &[]).choose(&[]), Err(exhausted), "{net}");
            assert_eq!(pool(&cidrs, &[], &[]).usage(&cidrs[0]).capacity, 0, "{net}");
        }
        let cidrs = nets(&["255.255.255.252/30", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126"]);
        let last = ips(&["255.255.255.254", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"]);
        let first = ips(&["255.255.255.253", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffd"]);
        assert_eq!(pool(&cidrs, &[], &last).choose(&[]), Ok(first));
    }

    #[test]
    fn requested_addresses_are_given_as_they_are_or_refused_by_name() {
        let cidrs = nets(&["10.244.1.0/24", "fd00:244:1::/64"]);
        let exclude = excluded(&["10.244.1.100-10.244.1.120"]);
        let quarantine = BTreeMap::from([(ips(&["10.244.1.7"])[0], Duration::from_secs(9))]);
        let pool = Pool { exclude: &exclude, quarantine, ..pool(&cidrs, &["10.244.1.9"], &[]) };
        let wanted = ips(&["fd00:244:1::77", "10.244.1.7"]);
        assert_eq!(pool.choose(&wanted), Ok(wanted), "who asks for it by name gets it out of quarantine");
        let refused = |list: &[&str]| pool.choose(&ips(list)).unwrap_err();
        assert_eq!(refused(&["10.244.1.9"]), AddressError::Taken("10.244.1.9".parse().unwrap()));
        assert_eq!(refused(&["10.244.1.7", "10.244.1.8"]), AddressError::Second("10.244.1.8".parse().unwrap()));
        assert_eq!(refused(&["10.244.1.120"]), AddressError::Excluded("10.244.1.120".parse().unwrap(), exclude[0]));
        let foreign = refused(&["10.244.2.7"]).to_string();
        assert!(foreign.contains("10.244.2.7") && foreign.contains("10.244.1.0/24, fd00:244:1::/64"), "{foreign}");
    }

    #[test]
    fn who_finds_only_resting_addresses_is_told_how_long_to_wait() {
        let cidrs = nets(&["10.244.1.0/29"]);
        let exclude = excluded(&["10.244.1.4-10.244.1.6"]);
        let quarantine = ips(&["10.244.1.2", "10.244.1.3", "10.244.1.5"]).into_iter();
        let quarantine = quarantine.zip([9500, 4500, 500].map(Duration::from_millis)).collect();
        let pool = Pool { exclude: &exclude, quarantine, ..pool(&cidrs, &["10.244.1.1"], &[]) };
        let error = pool.choose(&[]).unwrap_err().to_string();
        assert!(error.contains("10.244.1.0/29") && error.contains("leaves quarantine in 5 s"), "{error}");
    }

    #[test]
    fn a_range_that_is_excluded_almost_whole_takes_no_time() {
        let cidrs = nets(&["fd00::/64"]);
        let exclude = excluded(&["fd00::-fd00::ffff:ffff:ffff:fff0"]);
        let pool = Pool { exclude: &exclude, ..pool(&cidrs, &["fd00::ffff:ffff:ffff:fff1"], &[]) };
        assert_eq!(pool.choose(&[]), Ok(ips(&["fd00::ffff:ffff:ffff:fff2"])));
        let usage = pool.usage(&cidrs[0]);
        assert_eq!((usage.capacity, usage.used, usage.free), (14, 1, 13));
        let whole = Pool { exclude: &[], ..pool };
        assert_eq!(whole.usage(&nets(&["fd00::/48"])[0]).capacity, u64::MAX, "more cannot be said");
    }

    /// What can happen to the addresses of a node.
    #[derive(Clone, Debug)]
    enum Step {
        Give,
        Ask(u8),
        /// The how-manieth of those that are taken.
        Release(usize),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Give),
            1 => (0_u8..20).prop_map(Step::Ask),
            3 => (0_usize..16).prop_map(Step::Release),
            1 => (1_u64..12).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Against the plainest model there is: a list of 16 addresses, each free, taken, or resting until a time.
        #[test]
        fn no_address_is_given_twice_or_while_it_rests_and_none_is_forgotten(
            steps in prop::collection::vec(step(), 1..200),
            exclude in prop::collection::btree_set(0_u8..16, 0..6),
        ) {
            const REST: u64 = 10;
            let cidrs = nets(&["10.0.0.0/28"]);
            let address = |index: u8| IpAddr::from([10, 0, 0, index]);
            let index = |address: IpAddr| u8::try_from(to_bits(address) & 0xff).unwrap();
            let ranges: Vec<_> =
                exclude.iter().map(|index| AddressRange::new(address(*index), address(*index)).unwrap()).collect();
            let usable: BTreeSet<u8> = (1..15).filter(|index| !exclude.contains(index)).collect();
            let (mut now, mut taken, mut released, mut last) = (0, BTreeSet::new(), BTreeMap::new(), Vec::new());
            for step in steps {
                released.retain(|_, since| *since + REST > now);
                let pool = Pool {
                    cidrs: &cidrs,
                    exclude: &ranges,
                    taken: taken.iter().map(|index| address(*index)).collect(),
                    quarantine: released.iter().map(|(index, since)| (address(*index), Duration::from_secs(*since + REST - now))).collect(),
                    last: &last,
                };
                let free: BTreeSet<u8> =
                    usable.iter().copied().filter(|index| !taken.contains(index) && !released.contains_key(index)).collect();
                let usage = pool.usage(&cidrs[0]);
                prop_assert_eq!(usage.free, free.len() as u64);
                prop_assert_eq!((usage.used, usage.capacity), (taken.len() as u64, usable.len() as u64));
                match step {
                    Step::Give => match pool.choose(&[]) {
                        Ok(given) => {
                            let given = index(given[0]);
                            let after = last.first().map_or(0, |last| index(*last));
                            let next = free.range(after + 1..).next().or(free.first());
                            prop_assert_eq!(Some(&given), next, "the next free one, or the first");
                            taken.insert(given);
                            last = vec![address(given)];
                        }
                        Err(error) => {
                            prop_assert!(free.is_empty());
                            let next = released.iter().filter(|(index, _)| usable.contains(index)).map(|(_, since)| *since + REST - now).min();
                            prop_assert_eq!(error, AddressError::Exhausted { range: cidrs[0], next_in: next.map(Duration::from_secs) });
                        }
                    },
                    Step::Ask(wanted) => {
                        let may = usable.contains(&wanted) && !taken.contains(&wanted);
                        prop_assert_eq!(pool.choose(&[address(wanted)]).is_ok(), may);
                        if may {
                            taken.insert(wanted);
                            released.remove(&wanted);
                        }
                    }
                    Step::Release(which) => {
                        if let Some(gone) = taken.iter().copied().nth(which) {
                            taken.remove(&gone);
                            released.insert(gone, now);
                        }
                    }
                    Step::Wait(time) => now += time,
                }
            }
        }
    }
}
