use crate::frame::{CHUNK_SIZE, Frame, Pool, Region};

/// Where a chunk is, as far as one socket knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Not with this socket.
    Elsewhere,
    Fill,
    Send,
}

/// Which chunks one socket has lent to the kernel, and on which side.
///
/// The kernel may return an address twice, or with the head moved: an address is taken back only when its
/// chunk is out on that side, and then only once.
#[derive(Debug)]
pub struct Ledger {
    region: Region,
    places: Box<[Place]>,
    filled: u32,
    sent: u32,
}

impl Ledger {
    pub fn new(region: Region) -> Self {
        let places = vec![Place::Elsewhere; region.chunks() as usize].into_boxed_slice();
        Self { region, places, filled: 0, sent: 0 }
    }

    /// How many chunks the kernel holds to receive into, read or unread.
    pub fn filled(&self) -> u32 {
        self.filled
    }

    /// How many chunks the kernel holds to send.
    pub fn sent(&self) -> u32 {
        self.sent
    }

    /// Lends a frame to the fill side; returns the address to tell the kernel.
    pub fn lend_fill(&mut self, frame: Frame) -> u64 {
        let address = u64::from(frame.chunk()) * CHUNK_SIZE as u64;
        self.filled += 1;
        self.place(frame, Place::Fill);
        address
    }

    /// Lends a frame to the send side.
    pub fn lend_send(&mut self, frame: Frame) {
        self.sent += 1;
        self.place(frame, Place::Send);
    }

    /// Takes back a received packet; `None` for an address that is not out on the fill side, or a length
    /// that leaves the chunk (then the chunk stays lent: it is the kernel's until it says something sane).
    pub fn take_received(&mut self, address: u64, len: u32) -> Option<Frame> {
        let offset = usize::try_from(address).ok()? % CHUNK_SIZE;
        let len = len as usize;
        if offset + len > CHUNK_SIZE {
            return None;
        }
        let mut frame = self.take(address, Place::Fill)?;
        self.filled -= 1;
        frame.reset(offset);
        let fits = frame.set_len(len);
        debug_assert!(fits);
        Some(frame)
    }

    /// Takes back a sent chunk; `None` for an address that is not out on the send side.
    pub fn take_sent(&mut self, address: u64) -> Option<Frame> {
        let frame = self.take(address, Place::Send)?;
        self.sent -= 1;
        Some(frame)
    }

    /// Takes back all that is lent.
    ///
    /// # Safety
    ///
    /// The socket is closed: the kernel touches no chunk any more.
    pub unsafe fn recover(mut self) -> Pool {
        let chunks = 0..self.region.chunks();
        Pool::new(
            chunks
                .filter_map(|chunk| {
                    let address = u64::from(chunk) * CHUNK_SIZE as u64;
                    self.take(address, Place::Fill).or_else(|| self.take(address, Place::Send))
                })
                .collect(),
        )
    }

    fn place(&mut self, frame: Frame, place: Place) {
        if let Some(entry) = self.places.get_mut(self.region.lend(frame) as usize) {
            debug_assert_eq!(*entry, Place::Elsewhere);
            *entry = place;
        }
    }

    fn take(&mut self, address: u64, from: Place) -> Option<Frame> {
        let chunk = usize::try_from(address).ok()? / CHUNK_SIZE;
        let entry = self.places.get_mut(chunk).filter(|place| **place == from)?;
        *entry = Place::Elsewhere;
        // SAFETY: the ledger holds the chunk as lent, and by now no longer (invariant 4).
        Some(unsafe { self.region.redeem(u32::try_from(chunk).ok()?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bogus_addresses_give_no_frame() {
        let (region, mut pool) = Region::map(4).unwrap();
        let mut ledger = Ledger::new(region);
        let filled = ledger.lend_fill(pool.take().unwrap());
        ledger.lend_send(pool.take().unwrap());
        let sent = CHUNK_SIZE as u64;

        assert!(ledger.take_received(filled + 4000, 200).is_none(), "leaves its chunk");
        assert!(ledger.take_received(sent, 64).is_none(), "is on the send side");
        assert!(ledger.take_sent(filled).is_none(), "is on the fill side");
        assert!(ledger.take_sent(99 * CHUNK_SIZE as u64).is_none(), "is no chunk");
        assert!(ledger.take_received(u64::MAX, 1).is_none(), "is no chunk");

        let frame = ledger.take_received(filled + 300, 64).unwrap();
        assert_eq!((frame.chunk(), frame.len(), frame.address()), (0, 64, 300));
        assert!(ledger.take_received(filled + 300, 64).is_none(), "came back already");
        pool.put(frame);
        pool.put(ledger.take_sent(sent + 256).unwrap());
        assert_eq!((ledger.filled(), ledger.sent(), pool.len()), (0, 0, 4));
    }

    #[test]
    fn a_closed_socket_gives_back_all_it_lent() {
        let (region, mut pool) = Region::map(8).unwrap();
        let mut ledger = Ledger::new(region);
        for _ in 0..3 {
            ledger.lend_fill(pool.take().unwrap());
            ledger.lend_send(pool.take().unwrap());
        }
        // SAFETY: no kernel was ever involved.
        pool.absorb(unsafe { ledger.recover() });
        let mut chunks: Vec<_> = std::iter::from_fn(|| pool.take()).map(|frame| frame.chunk()).collect();
        chunks.sort_unstable();
        assert_eq!(chunks, (0..8).collect::<Vec<_>>());
    }
}
