use crate::frame::{Pool, Region};

/// The slots of each AF_XDP ring at most. Larger rings leave the cache, smaller ones lose bursts.
const LARGEST_RING: u32 = 2048;
const SMALLEST_RING: u32 = 64;

/// The ring size for each of a worker's `queues`: the fill rings, twice as large, have room for half of its `chunks`.
pub fn ring_size(chunks: u32, queues: u32) -> u32 {
    let share = (chunks / 4 / queues.max(1)).clamp(SMALLEST_RING, LARGEST_RING);
    1 << share.ilog2()
}

/// How many chunks each of a worker's `queues` keeps to receive into: together at most half of its `chunks`, so that
/// receiving can never starve sending.
pub fn fill_target(chunks: u32, queues: u32) -> u32 {
    (chunks / 2 / queues.max(1)).min(2 * ring_size(chunks, queues))
}

/// Unmaps a worker's packet memory; if a frame is missing the memory stays, and that is said.
pub fn release(region: Region, pool: Pool) {
    let chunks = region.chunks();
    if let Err(pool) = region.unmap(pool) {
        tracing::error!(
            missing = chunks as usize - pool.len().min(chunks as usize),
            "a worker returned too few frames"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fill_rings_leave_half_of_the_memory_for_sending() {
        for (chunks, queues) in [(8192, 1), (8192, 4), (1024, 2), (40_000, 3), (512, 1), (512, 4), (8192, 64)] {
            let (size, fill) = (ring_size(chunks, queues), fill_target(chunks, queues));
            assert!(size.is_power_of_two() && fill > 0 && fill <= 2 * size, "{chunks} chunks, {queues} queues");
            assert!(fill * queues <= chunks / 2, "{chunks} chunks, {queues} queues: {fill}");
        }
        assert_eq!((ring_size(8192, 1), fill_target(8192, 1), ring_size(1 << 20, 1)), (2048, 4096, 2048));
    }
}
