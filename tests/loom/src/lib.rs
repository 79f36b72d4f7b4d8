//! Publication, and a worker's inbox, under every interleaving and every reordering that the memory model allows:
//!
//! `cargo test --release --manifest-path tests/loom/Cargo.toml --target-dir target/loom`

#[path = "../../../src/fib/publish.rs"]
pub mod publish;

#[path = "../../../src/worker/inbox.rs"]
pub mod inbox;
pub mod stand_ins;

/// What the inbox knows of the worker and the crate.
#[derive(Debug)]
pub struct Fault;

pub mod trace {
    #[derive(Debug)]
    pub struct Tap;
}

#[cfg(test)]
mod tests {
    use loom::cell::UnsafeCell;
    use loom::model::Builder;
    use loom::sync::Arc;
    use loom::thread;

    use crate::inbox::{Inbox, Message};
    use crate::publish::{Publisher, Reader};

    /// A value whose reads and whose end loom watches: a read that is not ordered before the
    /// drop, or after the creation, fails the model.
    struct Watched(UnsafeCell<[u64; 2]>);

    // SAFETY: what loom checks here.
    unsafe impl Sync for Watched {}

    impl Watched {
        fn new(value: u64) -> Self {
            Self(UnsafeCell::new([value, !value]))
        }

        fn read(&self) -> u64 {
            // SAFETY: loom refuses a read that races with the drop.
            let [value, inverse] = self.0.with(|cell| unsafe { *cell });
            assert_eq!(inverse, !value, "half an update");
            value
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            // SAFETY: loom refuses a write that races with a read.
            self.0.with_mut(|cell| unsafe { *cell = [0, 0] });
        }
    }

    fn model(check: impl Fn() + Sync + Send + 'static) {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(4);
        builder.check(check);
    }

    fn publish_and_reclaim(publisher: &mut Publisher<Watched>, values: std::ops::RangeInclusive<u64>) {
        for value in values {
            publisher.publish(Watched::new(value));
            publisher.reclaim();
        }
    }

    /// Reads twice in a row and never goes back.
    fn read_forward(reader: &mut Reader<Watched>) -> u64 {
        let first = reader.get().read();
        let second = reader.get().read();
        assert!(second >= first);
        second
    }

    #[test]
    fn a_reader_that_stays_awake_never_reads_a_freed_value() {
        model(|| {
            let mut publisher = Publisher::new(Watched::new(1));
            let mut reader = publisher.reader();
            let thread = thread::spawn(move || read_forward(&mut reader));
            publish_and_reclaim(&mut publisher, 2..=3);
            thread.join().unwrap();
            assert_eq!(publisher.reclaim(), 0);
        });
    }

    #[test]
    fn a_reader_that_rests_and_wakes_never_reads_a_freed_value() {
        model(|| {
            let mut publisher = Publisher::new(Watched::new(1));
            let mut reader = publisher.reader();
            let thread = thread::spawn(move || {
                let first = reader.get().read();
                reader.rest();
                assert!(reader.get().read() >= first);
                reader.rest();
            });
            publish_and_reclaim(&mut publisher, 2..=3);
            thread.join().unwrap();
            assert_eq!(publisher.reclaim(), 0);
        });
    }

    #[test]
    fn two_readers_hold_values_back_independently() {
        model(|| {
            let mut publisher = Publisher::new(Watched::new(1));
            let threads = [publisher.reader(), publisher.reader()].map(|mut reader| {
                thread::spawn(move || {
                    reader.get().read();
                    reader.rest();
                    reader.get().read()
                })
            });
            publish_and_reclaim(&mut publisher, 2..=2);
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(publisher.reclaim(), 0);
        });
    }

    #[test]
    fn a_reader_may_outlive_the_publisher() {
        model(|| {
            let mut publisher = Publisher::new(Watched::new(1));
            let mut reader = publisher.reader();
            let thread = thread::spawn(move || read_forward(&mut reader));
            publisher.publish(Watched::new(2));
            drop(publisher);
            thread.join().unwrap();
        });
    }

    #[test]
    fn what_was_published_before_a_reader_is_told_is_what_it_reads() {
        model(|| {
            let mut publisher = Publisher::new(Watched::new(1));
            let mut reader = publisher.reader();
            publisher.publish(Watched::new(2));
            let thread = thread::spawn(move || assert_eq!(reader.get().read(), 2));
            publisher.reclaim();
            thread.join().unwrap();
        });
    }

    /// A worker that never hears of a message is a deadlock, one that cannot sleep never ends: loom reports both.
    #[test]
    fn a_worker_that_sleeps_when_its_inbox_is_quiet_hears_of_every_message() {
        model(|| {
            let inbox = Arc::new(Inbox::new().unwrap());
            let control = {
                let inbox = Arc::clone(&inbox);
                thread::spawn(move || {
                    inbox.put(Message::Trace(None)).unwrap();
                    inbox.put(Message::Stop).unwrap();
                })
            };
            let mut traced = 0;
            loop {
                match inbox.take() {
                    Some(Message::Stop) => break,
                    Some(_) => traced += 1,
                    None if inbox.is_quiet() => inbox.listen(),
                    None => {}
                }
            }
            control.join().unwrap();
            assert_eq!(traced, 1);
        });
    }
}
