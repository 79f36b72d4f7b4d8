use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::DataplaneError;
use super::memory::{release, ring_size};
use crate::config::{Mode, ZeroCopy};
use crate::control::view::{Counters, FrameLedger, QueueStatus, Settings, WorkerStatus};
use crate::counters::{Count, DropReason};
use crate::fib::{Fib, Reader};
use crate::frame::{Pool, Region};
use crate::ids::{QueueId, WorkerId};
use crate::packet::{Fanout, Ring, Sender};
use crate::pipeline::{Node, Pipeline};
use crate::port::{Hub, Uplink};
use crate::shared::Heartbeat;
use crate::steer::Steer;
use crate::worker::{Board, Inbox, Message, Polling, Sleep, Surroundings, Worker, now_ns};
use crate::xsk::{Binding, Options, Socket};

/// How long a worker may take to stop before it is given up.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// How often the load is measured.
const LOAD_WINDOW: Duration = Duration::from_secs(1);

/// Control's end of one worker.
#[derive(Debug)]
pub struct Seat {
    worker: WorkerId,
    core: usize,
    region: Region,
    queues: Vec<QueueStatus>,
    inbox: Arc<Inbox>,
    board: Arc<Board>,
    pulse: Heartbeat,
    thread: Option<JoinHandle<Worker<Uplink, Hub>>>,
    load: Load,
}

/// Busy passes of all passes over the last window.
#[derive(Debug)]
struct Load {
    since: Instant,
    polls: u64,
    busy: u64,
    share: f64,
}

impl Seat {
    /// Opens the ports of one of `workers` workers and starts its thread.
    pub fn start(
        settings: &Settings,
        steer: &Steer,
        fib: Reader<Fib>,
        highest_pod: Arc<AtomicU16>,
        worker: WorkerId,
        workers: u16,
    ) -> Result<Self, DataplaneError> {
        let failed = |source| DataplaneError::Worker { worker: worker.0, source };
        let core = settings.cores.get(usize::from(worker.0)).copied().unwrap_or_default();
        let (region, mut pool) = Region::map(settings.frames)?;
        let sockets = open_sockets(settings, steer, region, &mut pool, worker, workers)?;
        let queues = sockets
            .iter()
            .map(|(queue, socket)| QueueStatus { queue: queue.0, worker: worker.0, zero_copy: socket.zero_copy() })
            .collect();
        let fanout = Fanout { group: fanout_group(settings), program: steer.fanout_fd() };
        let ring = Ring::open(settings.hub, settings.hub_slots, (workers > 1).then_some(fanout))?;
        let hub = Hub::new(ring, Sender::open()?, steer.credits(), highest_pod);
        let uplink = Uplink::new(sockets);
        let inbox = Arc::new(Inbox::new().map_err(failed)?);
        let wakers: Vec<BorrowedFd<'_>> = uplink.fds().chain([hub.fd(), inbox.fd()]).collect();
        let around = Surroundings {
            polling: if settings.mode == Mode::Busy { Polling::Busy } else { Polling::Adaptive },
            core: core_affinity::CoreId { id: core },
            heartbeat: steer.heartbeat(worker)?,
            inbox: Arc::clone(&inbox),
            sleep: Sleep::new(wakers).map_err(failed)?,
            board: Arc::default(),
        };
        let board = Arc::clone(&around.board);
        let node = Node { vtep: settings.vtep, vtep_mac: settings.vtep_mac, port: settings.port, vni: settings.vni };
        let running = Worker::new(uplink, hub, pool, Pipeline::new(node), fib);
        let thread = thread::Builder::new()
            .name(format!("podwire-w{}", worker.0))
            .spawn(move || running.run(&around))
            .map_err(failed)?;
        Ok(Self {
            worker,
            core,
            region,
            queues,
            inbox,
            board,
            pulse: steer.heartbeat(worker)?,
            thread: Some(thread),
            load: Load { since: Instant::now(), polls: 0, busy: 0, share: 0.0 },
        })
    }

    pub fn chunks(&self) -> u64 {
        u64::from(self.region.chunks())
    }

    pub fn has_hugepages(&self) -> bool {
        self.region.huge()
    }

    pub fn queues(&self) -> Vec<QueueStatus> {
        self.queues.clone()
    }

    /// Whether the worker can go on.
    pub fn check(&self) -> Result<(), DataplaneError> {
        let worker = self.worker.0;
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            return Err(DataplaneError::Ended { worker });
        }
        if self.board.dead.load(Ordering::Relaxed) {
            return Err(DataplaneError::LostDevice { worker });
        }
        Ok(())
    }

    /// Brings the load up to date once a window is over.
    #[expect(clippy::cast_precision_loss, reason = "a share of passes for people")]
    pub fn measure_load(&mut self) {
        if self.load.since.elapsed() < LOAD_WINDOW {
            return;
        }
        let tally = self.board.tally.read();
        let (polls, busy) = (tally.count(Count::Polls), tally.count(Count::BusyPolls));
        let passes = polls.saturating_sub(self.load.polls).max(1);
        let share = busy.saturating_sub(self.load.busy) as f64 / passes as f64;
        self.load = Load { since: Instant::now(), polls, busy, share };
    }

    pub fn status(&self, settings: &Settings) -> WorkerStatus {
        let tally = self.board.tally.read();
        let (asleep, fresh) = self.pulse.state(now_ns(), settings.stale_ms * 1_000_000);
        let counts = Count::ALL.iter().map(|&count| (count.label().to_owned(), tally.count(count)));
        let drops = DropReason::ALL.iter().map(|&reason| (reason.label().to_owned(), tally.drops(reason)));
        WorkerStatus {
            worker: self.worker.0,
            core: self.core,
            load: self.load.share,
            asleep,
            fresh,
            frames: self.ledger(),
            counts: counts.collect::<Counters>(),
            drops: drops.collect::<Counters>(),
        }
    }

    fn ledger(&self) -> FrameLedger {
        let frames = &self.board.frames;
        let [pool, fill, tx] = [&frames.pool, &frames.fill, &frames.send].map(|cell| cell.load(Ordering::Relaxed));
        // The worker publishes between two passes, when its hands are empty.
        FrameLedger { total: self.chunks(), pool, fill, tx, hands: 0 }
    }

    pub fn ask_to_stop(&self) {
        if self.inbox.put(Message::Stop).is_err() {
            tracing::warn!(worker = self.worker.0, "the inbox is full: the worker does not read it");
        }
    }

    /// Waits until the worker has stopped and takes back what it owned. A worker that hangs is left behind with its
    /// memory: the kernel path has its traffic by then.
    pub fn join(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let deadline = Instant::now() + STOP_LIMIT;
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                tracing::error!(worker = self.worker.0, "the worker does not stop; it is left behind");
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let Ok(worker) = thread.join() else { return };
        let Worker { wire, mut pool, .. } = worker;
        pool.absorb(wire.close());
        release(self.region, pool);
    }
}

/// A seat that is given up early, because a later one could not be taken, ends its worker.
impl Drop for Seat {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.ask_to_stop();
            self.join();
        }
    }
}

/// Opens the sockets of the queues that are dealt to a worker: every `workers`th.
fn open_sockets(
    settings: &Settings,
    steer: &Steer,
    region: Region,
    pool: &mut Pool,
    worker: WorkerId,
    workers: u16,
) -> Result<Vec<(QueueId, Socket)>, DataplaneError> {
    let queues = (u32::from(worker.0)..settings.queues.max(1)).step_by(usize::from(workers));
    let ring_size = ring_size(region.chunks(), u32::try_from(queues.len()).unwrap_or(u32::MAX));
    let binding = match settings.zero_copy {
        ZeroCopy::Require => Binding::ZeroCopy,
        ZeroCopy::Off => Binding::Copy,
        ZeroCopy::Auto => Binding::Auto,
    };
    let mut sockets = Vec::with_capacity(queues.len());
    for queue in queues.map(QueueId) {
        let options = Options { ifindex: settings.uplink, queue, binding, ring_size };
        let socket = Socket::open(region, pool, &options)?;
        steer.register_queue(queue, worker, socket.fd())?;
        sockets.push((queue, socket));
    }
    Ok(sockets)
}

/// A fanout group of the hub's own: groups are numbered per network namespace, and so are devices.
fn fanout_group(settings: &Settings) -> u16 {
    u16::try_from(settings.hub.0 % (1 << 16)).unwrap_or_default()
}
