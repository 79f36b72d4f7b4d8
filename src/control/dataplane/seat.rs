use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::DataplaneError;
use super::memory::release;
use super::ports::{OpenQueue, Ports};
use crate::config::Mode;
use crate::control::view::{
    BusyPollRefusal, BusyPollStatus, Counters, FrameLedger, ProbationStatus, QueueStatus, Settings, TrafficStatus,
    WorkerStatus,
};
use crate::counters::{Count, DropReason, Traffic};
use crate::fib::{Fib, Reader};
use crate::frame::{Pool, Region};
use crate::ids::{PodId, WorkerId};
use crate::pipeline::{Node, Pipeline};
use crate::port::{Hub, Uplink};
use crate::shared::Heartbeat;
use crate::steer::{Steer, XdpMode};
use crate::trace::Tap;
use crate::worker::{Board, Fault, Inbox, Message, Polling, Surroundings, WakeRate, Worker, near, now_ns};

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
    queues: Vec<OpenQueue>,
    /// By pod id.
    pods: Arc<[Traffic]>,
    inbox: Arc<Inbox>,
    board: Arc<Board>,
    pulse: Heartbeat,
    thread: Option<JoinHandle<Worker<Uplink, Hub>>>,
    load: Load,
}

/// The share of the last window that went into passes that found work.
#[derive(Debug)]
struct Load {
    since: Instant,
    busy_ns: u64,
    share: f64,
}

/// What all workers of a data plane share.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    pub settings: &'a Settings,
    pub steer: &'a Steer,
    pub xdp: Option<XdpMode>,
    pub workers: u16,
    pub highest_pod: &'a Arc<AtomicU16>,
}

impl Common<'_> {
    /// The CPU of a worker.
    fn core(&self, worker: WorkerId) -> usize {
        self.settings.cores.get(usize::from(worker.0)).copied().unwrap_or_default()
    }
}

impl Seat {
    /// Opens a worker's ports and starts its thread. On an error nothing of it is left but, when there is no
    /// thread to be had, the mapping of its packet memory.
    ///
    /// All that is done near the worker's core, so that its memory and the kernel's rings are on its NUMA node.
    pub fn start(common: Common<'_>, fib: Reader<Fib>, worker: WorkerId) -> Result<Self, DataplaneError> {
        let core = core_affinity::CoreId { id: common.core(worker) };
        near(core, move || Self::set_up(common, fib, worker))
            .map_err(|source| DataplaneError::Worker { worker: worker.0, source })?
    }

    fn set_up(common: Common<'_>, fib: Reader<Fib>, worker: WorkerId) -> Result<Self, DataplaneError> {
        let (region, mut pool) = Region::map(common.settings.frames)?;
        let ports = Ports::open(common, region, &mut pool, worker);
        match ports.and_then(|ports| Self::occupy(common, fib, worker, region, &mut pool, ports)) {
            Ok(seat) => Ok(seat),
            Err(error) => {
                release(region, pool);
                Err(error)
            }
        }
    }

    fn occupy(
        common: Common<'_>,
        fib: Reader<Fib>,
        worker: WorkerId,
        region: Region,
        pool: &mut Pool,
        ports: Ports,
    ) -> Result<Self, DataplaneError> {
        let Common { settings, steer, .. } = common;
        let core = common.core(worker);
        let Ports { uplink, hub, inbox, queues, pods } = ports;
        let (heartbeat, pulse) = match (steer.heartbeat(worker), steer.heartbeat(worker)) {
            (Ok(heartbeat), Ok(pulse)) => (heartbeat, pulse),
            (Err(error), _) | (_, Err(error)) => {
                pool.absorb(uplink.close());
                return Err(error.into());
            }
        };
        let around = Surroundings {
            polling: if settings.mode == Mode::Busy { Polling::Busy } else { Polling::Adaptive },
            wake_rate: WakeRate(settings.wake_pps),
            core: core_affinity::CoreId { id: core },
            heartbeat,
            stale_ns: settings.stale_ms * 1_000_000,
            inbox: Arc::clone(&inbox),
            board: Arc::default(),
        };
        let board = Arc::clone(&around.board);
        let &Settings { vtep, vtep_mac, second, uplink_mac, port, vni, .. } = settings;
        let node = Node { vtep, vtep_mac, second, uplink_mac, port, vni };
        let running = Worker::new(uplink, hub, std::mem::take(pool), Pipeline::new(node), fib);
        let thread = thread::Builder::new()
            .name(format!("podwire-w{}", worker.0))
            .spawn(move || running.run(&around))
            .map_err(|source| DataplaneError::Worker { worker: worker.0, source })?;
        let load = Load { since: Instant::now(), busy_ns: 0, share: 0.0 };
        Ok(Self { worker, core, region, queues, pods, inbox, board, pulse, thread: Some(thread), load })
    }

    pub fn chunks(&self) -> u64 {
        u64::from(self.region.chunks())
    }

    pub fn has_hugepages(&self) -> bool {
        self.region.huge()
    }

    pub fn queues(&self) -> impl Iterator<Item = QueueStatus> {
        self.queues.iter().map(|queue| QueueStatus {
            queue: queue.id.0,
            worker: self.worker.0,
            zero_copy: queue.zero_copy,
            busy_poll: busy_poll(queue),
            traffic: read(&queue.traffic),
        })
    }

    /// What this worker has carried for a pod.
    pub fn pod(&self, pod: PodId) -> TrafficStatus {
        self.pods.get(usize::from(pod.get())).map(read).unwrap_or_default()
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
    pub fn measure_load(&mut self) {
        let elapsed = self.load.since.elapsed();
        if elapsed < LOAD_WINDOW {
            return;
        }
        let busy_ns = self.board.times.read().busy.sum_ns;
        let busy = Duration::from_nanos(busy_ns.saturating_sub(self.load.busy_ns));
        let share = busy.div_duration_f64(elapsed).min(1.0);
        self.load = Load { since: Instant::now(), busy_ns, share };
    }

    pub fn status(&self, settings: &Settings) -> WorkerStatus {
        let tally = self.board.tally.read();
        let now_ns = now_ns();
        let (asleep, fresh) = self.pulse.state(now_ns, settings.stale_ms * 1_000_000);
        let counts = Count::ALL.iter().map(|&count| (count.label().to_owned(), tally.count(count)));
        let drops = DropReason::ALL.iter().map(|&reason| (reason.label().to_owned(), tally.drops(reason)));
        WorkerStatus {
            worker: self.worker.0,
            core: self.core,
            pinned: self.board.pinned.load(Ordering::Relaxed),
            load: self.load.share,
            times: self.board.times.read().into(),
            asleep,
            fresh,
            heartbeat_age_ns: self.pulse.age_ns(now_ns),
            probation: self.probation(),
            frames: self.ledger(),
            counts: counts.collect::<Counters>(),
            drops: drops.collect::<Counters>(),
        }
    }

    fn probation(&self) -> Option<ProbationStatus> {
        let (ailment, until_ns) = self.board.probation()?;
        Some(ProbationStatus { reason: ailment.into(), remaining_ms: until_ns.saturating_sub(now_ns()) / 1_000_000 })
    }

    fn ledger(&self) -> FrameLedger {
        let frames = &self.board.frames;
        let [pool, fill, tx] = [&frames.pool, &frames.fill, &frames.send].map(|cell| cell.load(Ordering::Relaxed));
        // The worker publishes between two passes, when its hands are empty but for what it may not use.
        let hands = frames.withheld.load(Ordering::Relaxed);
        FrameLedger { total: self.chunks(), pool, fill, tx, hands }
    }

    pub fn id(&self) -> WorkerId {
        self.worker
    }

    /// Has the worker trace, or no longer; false when its inbox is full.
    pub fn trace(&self, tap: Option<Tap>) -> bool {
        self.inbox.put(Message::Trace(tap)).is_ok()
    }

    /// Has the worker suffer; false when its inbox is full.
    pub fn provoke(&self, fault: Fault) -> bool {
        self.inbox.put(Message::Fault(fault)).is_ok()
    }

    pub fn ask_to_stop(&self) {
        if self.inbox.put(Message::Stop).is_err() {
            tracing::warn!(worker = self.worker.0, "the inbox is full: the worker does not read it");
        }
    }

    /// Waits until the worker has stopped and takes back what it owned. A worker that hangs is left behind with its
    /// memory and its sockets, which keep their queues and their place in the hub's fanout: the kernel path has its
    /// traffic by then.
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

fn busy_poll(queue: &OpenQueue) -> BusyPollStatus {
    let napi_id = Some(queue.napi.id.load(Ordering::Relaxed)).filter(|&id| id != 0);
    let unnamed = match queue.traffic.rx_packets.load(Ordering::Relaxed) {
        _ if napi_id.is_some() => None,
        0 => Some(BusyPollRefusal::Unknown),
        _ => Some(BusyPollRefusal::NoNapi),
    };
    let [runs, frames] = [&queue.napi.runs, &queue.napi.frames].map(|count| count.load(Ordering::Relaxed));
    BusyPollStatus { refusal: queue.refusal.or(unnamed), napi_id, runs, frames }
}

fn read(traffic: &Traffic) -> TrafficStatus {
    let Traffic { rx_packets, rx_bytes, tx_packets, tx_bytes, lost } = traffic;
    let [rx_packets, rx_bytes, tx_packets, tx_bytes, lost] =
        [rx_packets, rx_bytes, tx_packets, tx_bytes, lost].map(|count| count.load(Ordering::Relaxed));
    TrafficStatus { rx_packets, rx_bytes, tx_packets, tx_bytes, lost }
}
