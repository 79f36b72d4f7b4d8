use super::Frame;

/// A worker's free frames: a stack, so that the chunk last used, still in the cache, is used next.
#[derive(Debug, Default)]
pub struct Pool {
    free: Vec<Frame>,
}

impl Pool {
    /// A pool of these frames. Room for all of them is kept: giving back never allocates.
    pub fn new(free: Vec<Frame>) -> Self {
        Self { free }
    }

    /// Takes a frame, or `None` when packet memory is exhausted.
    pub fn take(&mut self) -> Option<Frame> {
        self.free.pop()
    }

    /// Gives a frame back.
    pub fn put(&mut self, frame: Frame) {
        self.free.push(frame);
    }

    /// How many frames are free.
    pub fn len(&self) -> usize {
        self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// Whether `predicate` holds for every free frame.
    pub fn all(&self, predicate: impl FnMut(&Frame) -> bool) -> bool {
        self.free.iter().all(predicate)
    }

    /// Gives back all frames of another pool.
    pub fn absorb(&mut self, mut other: Self) {
        self.free.append(&mut other.free);
    }
}
