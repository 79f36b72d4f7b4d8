//! The data plane of this node: the steering programs, which stay attached for as long as it is wanted, and the
//! workers, which start and stop under them. Made from [`Settings`] and fed with [`View`]s.
//!
//! ```text
//!   programs   ┃▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓┃▓▓▓▓▓▓▓▓▓▓▓▓▓▓   exchanged in one step by the next daemon
//!   daemon      ════════════════════╣      ╠═══════════════
//!   workers        ━━━━━━   ━━━━━━━━            ━━━━━━━━━━━
//!                        ▲         ▲       ▲   ▲
//!          other settings         stop   take over, then start
//! ```
//!
//! While no worker runs the programs leave remote traffic to the kernel, but know pods and peers of each view: they
//! redirect between the pods, and what workers could take to the tunnels and from them, and drop what pods forge.
//!
//! What a frame may rely on is put in place before it is steered, and taken away after: an update first withdraws what
//! is gone from the steering maps, then publishes the new table, then steers what is new. A start attaches the
//! programs before the sockets are bound, since some drivers set up their queues by the program, and lets pods' frames
//! be claimed when all workers run.

mod memory;
mod ports;
mod repairs;
mod seat;
mod steered;
mod traced;
mod workers;

use std::error::Error;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::lifecycle::Engine;
use super::netns;
use super::trace::{Plan, Sources};
use super::view::{CreditStatus, DataplaneStatus, Settings, VerdictRow, View};
use crate::config::Xdp;
use crate::frame::{MAX_FRAME, RegionError};
use crate::ids::{IfIndex, PodId};
use crate::packet;
use crate::steer::{self, Pins, Steer, SteerConfig, SteerError, UplinkChoice};
use crate::wire::OuterTemplate;
use crate::worker::{Fault, WakeRate};
use crate::xsk::{self, Driver};
use repairs::Repairs;
use steered::{Prefixes, Steered};
use traced::Traced;
use workers::Workers;

/// What a TCP connection moves before it counts as bulk: more than the answers to most requests, and little of what a
/// transfer that matters moves.
const BULK_BYTES: u64 = 128 << 10;

/// How often it is looked whether the programs are still attached.
const REPAIR: Duration = Duration::from_secs(1);

/// Why the data plane could not be started.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    #[error("cannot tell which network namespace this is (SO_NETNS_COOKIE, Linux 5.14): {0}")]
    Namespace(std::io::Error),
    #[error(transparent)]
    Steer(#[from] SteerError),
    #[error(transparent)]
    Socket(#[from] xsk::Error),
    #[error(transparent)]
    Packet(#[from] packet::Error),
    #[error(transparent)]
    Memory(#[from] RegionError),
    #[error("cannot start worker {worker}: {source}")]
    Worker { worker: u16, source: std::io::Error },
    #[error("worker {worker} lost its device; the data plane is started again")]
    LostDevice { worker: u16 },
    #[error("worker {worker} ended by itself; the data plane is started again")]
    Ended { worker: u16 },
}

/// The data plane of the calling thread's network namespace. The programs stay attached when it is dropped.
#[derive(Debug)]
pub struct Dataplane {
    steer: Steer,
    steered: Steered,
    /// What an earlier data plane had attached is ours, or gone.
    taken_over: bool,
    workers: Option<Workers>,
    /// On the hub: of the workers that run, or that ran last and may still be reading.
    rings: u16,
    /// As last told.
    view: View,
    traced: Traced,
    repairs: Repairs,
    repair_at: Instant,
}

/// Detaches whatever a data plane of the calling thread's network namespace has attached, and removes what it has
/// pinned, whether it runs or not; a running one would repair it. Says whether there was anything. `devices` are those
/// where there may be a filter: the host ends of pods, the hub, the uplink, the VXLAN devices.
pub fn remove(devices: &[IfIndex]) -> Result<bool, DataplaneError> {
    Ok(steer::remove(pins()?, devices)?)
}

fn pins() -> Result<Option<Pins>, DataplaneError> {
    Ok(Pins::find(netns::cookie().map_err(DataplaneError::Namespace)?))
}

impl Dataplane {
    /// Loads the programs. What an earlier data plane has attached goes on until the first [`Engine::update`].
    pub fn open(settings: &Settings) -> Result<Self, DataplaneError> {
        let pins = Pins::open(netns::cookie().map_err(DataplaneError::Namespace)?)?;
        Ok(Self {
            steer: Steer::load(&steer_config(settings, Running::default(), 0, &View::default()), pins)?,
            steered: Steered::default(),
            taken_over: false,
            workers: None,
            rings: 0,
            view: View::default(),
            traced: Traced::default(),
            repairs: Repairs::default(),
            repair_at: Instant::now() + REPAIR,
        })
    }

    /// A starter for the daemon's life cycle. What cannot be taken over is removed: its maps would tell of pods that
    /// are not there any more.
    pub fn engine(settings: &Settings, view: &View) -> Result<Box<dyn Engine>, Box<dyn Error>> {
        match Self::open(settings) {
            Ok(dataplane) => Ok(Box::new(dataplane)),
            Err(error) => {
                let devices: Vec<_> = view
                    .pods
                    .iter()
                    .map(|pod| pod.pod.ifindex)
                    .chain([settings.hub.near, settings.hub.far, settings.uplink])
                    .chain(view.tunnels.keys().copied())
                    .collect();
                if let Err(error) = remove(&devices) {
                    tracing::error!(%error, "what an earlier data plane has attached stays, and is out of date");
                }
                Err(explained(&error))
            }
        }
    }

    fn try_update(&mut self, settings: &Settings, view: &View) -> Result<(), DataplaneError> {
        let prefixes = Prefixes::of(&view.remotes);
        let withdrawn = self.steered.withdraw(&mut self.steer, view, &prefixes);
        if let Some(workers) = &mut self.workers {
            workers.publish(view);
        }
        self.view.clone_from(view);
        let configured = self.configure(settings);
        let extended = self.steered.extend(&mut self.steer, view, &prefixes);
        let others = if self.taken_over { Ok(()) } else { self.steer.detach_other_devices() };
        self.taken_over |= others.is_ok();
        Ok(withdrawn.and(configured).and(extended).and(others)?)
    }

    fn try_start(&mut self, settings: &Settings, view: &View) -> Result<(), DataplaneError> {
        self.steer.attach_hub(settings.hub)?;
        let xdp = self.steer.attach_uplink(settings.uplink, uplink_choice(settings))?;
        self.workers = Some(Workers::start(&self.steer, settings, xdp, view)?);
        self.rings = worker_count(settings);
        let configured = self.configure(settings);
        if configured.is_err() {
            self.workers = None;
        }
        Ok(configured?)
    }

    /// Tells the programs what the node is like and how many workers run.
    fn configure(&self, settings: &Settings) -> Result<(), SteerError> {
        let running = match &self.workers {
            Some(workers) => Running {
                workers: worker_count(settings),
                bulk_bytes: if workers.leave_bulk() { BULK_BYTES } else { 0 },
                leaves_tcp: !workers.have_xdp(),
            },
            None => Running::default(),
        };
        self.steer.set_config(&steer_config(settings, running, self.rings, &self.view))
    }
}

impl Engine for Dataplane {
    fn update(&mut self, settings: &Settings, view: &View) -> Result<(), Box<dyn Error>> {
        self.try_update(settings, view).map_err(|error| explained(&error))
    }

    fn start(&mut self, settings: &Settings, view: &View) -> Result<(), Box<dyn Error>> {
        self.traced.cut();
        self.try_start(settings, view).map_err(|error| explained(&error))
    }

    fn maintain(&mut self) -> Result<(), Box<dyn Error>> {
        let now = Instant::now();
        if now >= self.repair_at {
            self.repair_at = now + REPAIR;
            self.repairs.tell(self.steer.repair(), now);
        }
        self.look_after_trace();
        match &mut self.workers {
            Some(workers) => workers.maintain().map_err(|error| explained(&error)),
            None => Ok(()),
        }
    }

    fn status(&self) -> DataplaneStatus {
        let (verdicts, credits) = (self.steer.verdicts().unwrap_or_default(), self.steer.credits());
        let pod_status = |pod: PodId| CreditStatus {
            pod: pod.get(),
            in_flight: u64::try_from(credits.in_flight(pod)).unwrap_or(0),
            traffic: self.workers.as_ref().map(|workers| workers.pod(pod)).unwrap_or_default(),
        };
        DataplaneStatus {
            pods: self.view.pods.iter().map(|pod| pod_status(pod.pod.id)).collect(),
            verdicts: verdicts
                .into_iter()
                .map(|(program, verdict, packets)| VerdictRow {
                    program: program.label().to_owned(),
                    verdict: verdict.label().to_owned(),
                    help: verdict.help().to_owned(),
                    packets,
                })
                .collect(),
            ..self.workers.as_ref().map(Workers::status).unwrap_or_default()
        }
    }

    fn trace(&mut self, plan: &Plan) -> Result<Sources, Box<dyn Error>> {
        self.begin_trace(plan)
    }

    fn provoke(&self, worker: u16, fault: Fault) -> Result<(), Box<dyn Error>> {
        self.workers.as_ref().ok_or("no data plane runs")?.provoke(worker, fault)
    }

    fn stop(&mut self) -> DataplaneStatus {
        self.traced.cut();
        if let Some(mut workers) = self.workers.take() {
            if let Err(error) = self.configure(workers.settings()) {
                tracing::warn!(%error, "the heartbeats alone tell the programs that the workers stop");
            }
            workers.stop();
            self.workers = Some(workers);
        }
        let last = self.status();
        self.workers = None;
        last
    }
}

/// For the report of the daemon.
fn explained(error: &DataplaneError) -> Box<dyn Error> {
    error.explained().into()
}

/// One worker a core, as far as there are queues: each needs one to receive on and one to send on.
fn worker_count(settings: &Settings) -> u16 {
    let queues = settings.queues.receive.min(settings.queues.send);
    let workers = settings.cores.len().min(queues as usize);
    u16::try_from(workers).unwrap_or(u16::MAX)
}

/// How the uplink is attached to.
fn uplink_choice(settings: &Settings) -> UplinkChoice {
    match settings.xdp {
        Xdp::Native => UplinkChoice::Native,
        Xdp::Generic => UplinkChoice::Generic,
        Xdp::Off => UplinkChoice::Tc,
        Xdp::Auto if settings.xdp.is_needed(settings.zero_copy, settings.bulk) => UplinkChoice::AnyXdp,
        // The kernel has a way for each packet: those that fit no chunk, and the others.
        Xdp::Auto if settings.mtu > largest_inner(settings.underlays()) => UplinkChoice::Tc,
        Xdp::Auto if Driver::of(&settings.uplink_name).is_ok_and(|driver| driver.copies_for_xdp()) => UplinkChoice::Tc,
        Xdp::Auto => UplinkChoice::Auto,
    }
}

/// What the programs are told of the workers that run.
#[derive(Clone, Copy, Debug, Default)]
struct Running {
    workers: u16,
    bulk_bytes: u64,
    leaves_tcp: bool,
}

fn steer_config(settings: &Settings, running: Running, rings: u16, view: &View) -> SteerConfig {
    let Running { workers, bulk_bytes, leaves_tcp } = running;
    SteerConfig {
        vtep: settings.vtep,
        vtep_mac: settings.vtep_mac,
        second: settings.second,
        uplink_mac: settings.uplink_mac,
        port: settings.port,
        vni: settings.vni,
        max_frame: u32::try_from(MAX_FRAME).unwrap_or(u32::MAX),
        max_packet: largest_inner(settings.underlays()).into(),
        pod_mtu: u32::from(settings.mtu),
        workers,
        rings,
        stale_ns: settings.stale_ms * 1_000_000,
        slots: settings.hub_slots.into(),
        bulk_bytes,
        wake_ns: WakeRate(settings.wake_pps).window_ns(),
        hub: settings.hub.near,
        nat: view.nat,
        known_vteps_only: view.known_vteps_only,
        takes_bare: view.takes_bare,
        leaves_tcp,
    }
}

/// The largest inner packet, in bytes, that fits a chunk of packet memory with the outer headers of any of our tunnels.
pub fn largest_inner(underlays: impl Iterator<Item = IpAddr>) -> u16 {
    let outer = underlays.map(OuterTemplate::len_over).max().unwrap_or_default();
    u16::try_from(MAX_FRAME - outer).unwrap_or(u16::MAX)
}
