use std::time::Duration;

use super::clock::now_ns;
use crate::frame::Pool;

/// What a test may have a worker suffer, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It spins and looks at nothing.
    Hang(Duration),
    /// It runs without packet memory.
    Starve(Duration),
    /// It makes a system call that its filter forbids.
    Overstep,
}

/// Frames that a worker must do without for a time.
#[derive(Debug, Default)]
pub struct Withheld {
    frames: Pool,
    until_ns: u64,
}

impl Withheld {
    /// Withholds frames from now on, for `time`.
    pub fn begin(&mut self, time: Duration) {
        self.until_ns = now_ns().saturating_add(nanoseconds(time));
    }

    /// Takes what is free in `pool`, or gives everything back when the time is over.
    pub fn withhold(&mut self, pool: &mut Pool) {
        if self.until_ns == 0 {
            return;
        }
        if now_ns() >= self.until_ns {
            self.until_ns = 0;
            self.give_back(pool);
        } else {
            while let Some(frame) = pool.take() {
                self.frames.put(frame);
            }
        }
    }

    /// Gives everything back.
    pub fn give_back(&mut self, pool: &mut Pool) {
        pool.absorb(std::mem::take(&mut self.frames));
    }

    /// How many frames are withheld.
    pub fn len(&self) -> usize {
        self.frames.len()
    }
}

/// Does nothing, busily.
pub fn hang(time: Duration) {
    let end_ns = now_ns().saturating_add(nanoseconds(time));
    while now_ns() < end_ns {
        std::hint::spin_loop();
    }
}

/// Looks at a file, which no worker does.
pub fn overstep() {
    let _unconfined = std::fs::metadata("/");
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Region;

    #[test]
    fn withheld_frames_are_out_of_the_pool_for_a_time_and_all_come_back() {
        let (region, mut pool) = Region::map(4).unwrap();
        let mut withheld = Withheld::default();
        withheld.withhold(&mut pool);
        assert_eq!((pool.len(), withheld.len()), (4, 0));
        withheld.begin(Duration::from_secs(3600));
        let late = pool.take().unwrap();
        withheld.withhold(&mut pool);
        pool.put(late);
        withheld.withhold(&mut pool);
        assert_eq!((pool.len(), withheld.len()), (0, 4));
        withheld.begin(Duration::ZERO);
        withheld.withhold(&mut pool);
        assert_eq!((pool.len(), withheld.len()), (4, 0));
        region.unmap(pool).unwrap();
    }
}
