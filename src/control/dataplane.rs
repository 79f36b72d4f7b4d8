//! The running data plane: the steering programs, the workers and the table between them, made from
//! [`Settings`] and fed with [`View`]s.
//!
//! What a frame may rely on is put in place before it is steered, and taken away after: an update first
//! withdraws what is gone from the steering maps, then publishes the new table, then steers what is new.

mod memory;
mod ports;
mod seat;
mod steered;

use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use ipnet::IpNet;

use super::lifecycle::Engine;
use super::view::{CreditStatus, DataplaneStatus, RemoteView, Settings, VerdictRow, View};
use crate::config::Xdp;
use crate::fib::{Fib, NextHop, Publisher, Remote};
use crate::frame::{MAX_FRAME, RegionError};
use crate::ids::{PodId, WorkerId};
use crate::packet;
use crate::steer::{Steer, SteerConfig, SteerError, XdpChoice, XdpMode};
use crate::wire::{OuterParams, OuterTemplate};
use crate::xsk;
use seat::{Common, Seat};
use steered::{Steered, addresses};

/// The outer time to live, as the kernel's VXLAN device sends it.
const OUTER_TTL: u8 = 64;

/// The fewest frames that a pod may have on their way to its worker.
const LEAST_QUOTA: u64 = 32;

/// Why the data plane could not be started.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
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

/// A running data plane.
#[derive(Debug)]
pub struct Dataplane {
    settings: Settings,
    steer: Steer,
    steered: Steered,
    xdp: XdpMode,
    publisher: Publisher<Fib>,
    seats: Vec<Seat>,
    highest_pod: Arc<AtomicU16>,
    pods: Vec<PodId>,
}

impl Dataplane {
    /// Loads and attaches the steering programs, opens the ports and starts the workers. Nothing is steered
    /// before the first [`Engine::update`].
    pub fn start(settings: &Settings) -> Result<Self, DataplaneError> {
        let workers = worker_count(settings);
        let mut steer = Steer::load(&steer_config(settings, workers, &View::default()))?;
        steer.attach_hub(settings.hub)?;
        // Before the sockets are bound: some drivers set up their queues by the program.
        let xdp = steer.attach_uplink(
            settings.uplink,
            match settings.xdp {
                Xdp::Native => XdpChoice::Native,
                Xdp::Generic => XdpChoice::Generic,
                Xdp::Auto => XdpChoice::Auto,
            },
        )?;
        let mut publisher = Publisher::new(Fib::default());
        let highest_pod = Arc::default();
        let common = Common { settings, steer: &steer, xdp, workers, highest_pod: &highest_pod };
        let seats: Result<_, _> =
            (0..workers).map(|worker| Seat::start(common, publisher.reader(), WorkerId(worker))).collect();
        Ok(Self {
            settings: settings.clone(),
            seats: seats?,
            steer,
            steered: Steered::default(),
            xdp,
            publisher,
            highest_pod,
            pods: Vec::new(),
        })
    }

    /// A starter for the daemon's life cycle.
    pub fn engine(settings: &Settings) -> Result<Box<dyn Engine>, Box<dyn Error>> {
        Ok(Box::new(Self::start(settings)?))
    }

    fn try_update(&mut self, view: &View) -> Result<(), DataplaneError> {
        let withdrawn = self.steered.withdraw(&mut self.steer, view);
        self.publisher.publish(table(&self.settings, view));
        self.pods = view.pods.iter().map(|pod| pod.pod.id).collect();
        let highest = self.pods.iter().max().map_or(0, |pod| pod.get());
        self.highest_pod.store(highest, Ordering::Relaxed);
        self.steer.set_config(&steer_config(&self.settings, self.workers(), view))?;
        let extended = self.steered.extend(&mut self.steer, view);
        Ok(withdrawn.and(extended)?)
    }

    fn workers(&self) -> u16 {
        worker_count(&self.settings)
    }
}

impl Engine for Dataplane {
    fn update(&mut self, view: &View) -> Result<(), Box<dyn Error>> {
        Ok(self.try_update(view)?)
    }

    fn maintain(&mut self) -> Result<(), Box<dyn Error>> {
        self.publisher.reclaim();
        for seat in &mut self.seats {
            seat.measure_load();
            seat.check()?;
        }
        Ok(())
    }

    fn status(&self) -> DataplaneStatus {
        let verdicts = self.steer.verdicts().unwrap_or_default();
        let credits = self.steer.credits();
        let pod_status = |&pod: &PodId| CreditStatus {
            pod: pod.get(),
            in_flight: u64::try_from(credits.in_flight(pod)).unwrap_or(0),
            traffic: self.seats.iter().map(|seat| seat.pod(pod)).sum(),
        };
        DataplaneStatus {
            xdp: match self.xdp {
                XdpMode::Native => "native".to_owned(),
                XdpMode::Generic => "generic".to_owned(),
            },
            frames: self.seats.iter().map(Seat::chunks).sum(),
            memory: if self.seats.iter().all(Seat::has_hugepages) { "hugepages" } else { "pages" }.to_owned(),
            queues: self.seats.iter().flat_map(Seat::queues).collect(),
            workers: self.seats.iter().map(|seat| seat.status(&self.settings)).collect(),
            pods: self.pods.iter().map(pod_status).collect(),
            verdicts: verdicts
                .into_iter()
                .map(|(program, verdict, packets)| VerdictRow {
                    program: program.label().to_owned(),
                    verdict: verdict.label().to_owned(),
                    help: verdict.help().to_owned(),
                    packets,
                })
                .collect(),
        }
    }

    fn stop(mut self: Box<Self>) -> DataplaneStatus {
        for seat in &self.seats {
            seat.ask_to_stop();
        }
        // The programs stay attached until the workers have carried what was claimed for them.
        for seat in &mut self.seats {
            seat.join();
        }
        self.status()
    }
}

/// One worker a core, as far as there are queues: each needs one to receive on and one to send on.
fn worker_count(settings: &Settings) -> u16 {
    let queues = settings.queues.receive.min(settings.queues.send);
    let workers = settings.cores.len().min(queues as usize);
    u16::try_from(workers).unwrap_or(u16::MAX)
}

fn steer_config(settings: &Settings, workers: u16, view: &View) -> SteerConfig {
    let sharers = view.pods.len().div_ceil(usize::from(workers.max(1))) as u64 + 1;
    let slots = u64::from(settings.hub_slots);
    SteerConfig {
        vtep: settings.vtep,
        vtep_mac: settings.vtep_mac,
        port: settings.port,
        vni: settings.vni,
        max_frame: u32::try_from(MAX_FRAME).unwrap_or(u32::MAX),
        pod_mtu: u32::from(settings.mtu),
        workers,
        stale_ns: settings.stale_ms * 1_000_000,
        quota: (slots / sharers).max(LEAST_QUOTA),
        hub: settings.hub,
        nat: view.nat,
    }
}

/// The routes of the workers: our own ranges end here, pods and remote ranges are more specific or elsewhere.
fn table(settings: &Settings, view: &View) -> Fib {
    let own = settings.pod_cidrs.iter().map(|cidr| (*cidr, NextHop::Blackhole));
    let pods = addresses(&view.pods).into_iter().map(|(address, pod)| (IpNet::from(address), NextHop::Local(pod)));
    let remotes = view.remotes.iter().flat_map(|remote| {
        let hop = next_hop(settings, remote);
        remote.prefixes.iter().map(move |prefix| (*prefix, hop.clone()))
    });
    Fib::build(own.chain(remotes).chain(pods))
}

fn next_hop(settings: &Settings, remote: &RemoteView) -> NextHop {
    let outer = OuterTemplate::new(&OuterParams {
        src_mac: settings.uplink_mac,
        dst_mac: remote.dst_mac,
        local: settings.vtep,
        remote: remote.underlay,
        port: settings.port,
        vni: settings.vni,
        ttl: OUTER_TTL,
        inner_src: settings.vtep_mac,
        inner_dst: remote.vtep_mac,
        udp_checksum: settings.udp_checksum,
    });
    // The configuration refuses peers of another family than ours.
    outer.map_or(NextHop::Blackhole, |outer| NextHop::Remote(Remote { outer, mtu: remote.mtu }))
}

/// The largest inner packet, in bytes, that fits a chunk of packet memory with its outer headers.
pub fn largest_inner(underlay: IpAddr) -> u16 {
    u16::try_from(MAX_FRAME - OuterTemplate::len_over(underlay)).unwrap_or(u16::MAX)
}
