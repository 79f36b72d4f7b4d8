//! The loop never allocates: counted by this binary's allocator, per thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::world::*;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends may allocate after its counter is gone.
    let _ended = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn passes_do_not_allocate() {
    let (mut sender, mut receiver) = (worker(1, Underlay::V6), worker(2, Underlay::V6));
    let payload = vec![1; 20_000];
    let request = [1, 1, 0, 0, 0x50, 5, 34, 0, 16, 0];
    let mut bursts: Vec<_> = samples().iter().map(|(_, frame)| encapsulated(frame, Underlay::V6)).collect();
    with_request(&mut sender, &tcp_v4(&payload), request);
    sender.poll_once();
    bursts.extend(sent(&mut sender));
    for (_, frame) in samples() {
        from_pod(&mut sender, &frame);
    }
    sender.pods.rewind();
    (sender.wire.sent, receiver.pods.delivered) = (None, None);
    for frame in bursts.iter().chain([&vec![0; 60]]) {
        assert!(receiver.wire.offer(frame, &mut receiver.pool));
    }
    // The memory ports' own queues grow in the first pass.
    sender.poll_once();
    receiver.poll_once();
    sender.pods.rewind();
    for frame in &bursts {
        assert!(receiver.wire.offer(frame, &mut receiver.pool));
    }
    let before = ALLOCATIONS.get();
    let work = sender.poll_once() + receiver.poll_once() + sender.poll_once();
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert_eq!(work, samples().len() + 1 + bursts.len());
    assert_eq!(sender.tally.dropped(), 0, "{:?}", sender.tally);
}
