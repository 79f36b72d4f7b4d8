//! The running data plane: the steering programs, the workers and the table between them, made from
//! [`Settings`] and fed with [`View`]s.
//!
//! What a frame may rely on is put in place before it is steered, and taken away after: an update first
//! withdraws what is gone from the steering maps, then publishes the new table, then steers what is new.

mod memory;
mod seat;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use ipnet::IpNet;

use super::lifecycle::Engine;
use super::view::{CreditStatus, DataplaneStatus, PodView, RemoteView, Settings, VerdictRow, View};
use crate::config::Xdp;
use crate::fib::{Fib, LocalPod, NextHop, Publisher, Remote};
use crate::frame::{MAX_FRAME, RegionError};
use crate::ids::WorkerId;
use crate::packet;
use crate::steer::{Steer, SteerConfig, SteerError, XdpChoice, XdpMode};
use crate::wire::{OuterParams, OuterTemplate};
use crate::xsk;
use seat::Seat;

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
    xdp: XdpMode,
    publisher: Publisher<Fib>,
    seats: Vec<Seat>,
    highest_pod: Arc<AtomicU16>,
    view: View,
}

impl Dataplane {
    /// Loads and attaches the steering programs, opens the ports and starts the workers. Nothing is steered
    /// before the first [`Engine::update`].
    pub fn start(settings: &Settings) -> Result<Self, DataplaneError> {
        let workers = worker_count(settings);
        let mut steer = Steer::load(&steer_config(settings, workers, 0))?;
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
        let mut dataplane = Self {
            settings: settings.clone(),
            steer,
            xdp,
            publisher: Publisher::new(Fib::default()),
            seats: Vec::new(),
            highest_pod: Arc::default(),
            view: View::default(),
        };
        for worker in (0..workers).map(WorkerId) {
            let seat = Seat::start(
                &dataplane.settings,
                &dataplane.steer,
                dataplane.publisher.reader(),
                Arc::clone(&dataplane.highest_pod),
                worker,
                workers,
            )?;
            dataplane.seats.push(seat);
        }
        Ok(dataplane)
    }

    /// A starter for the daemon's life cycle.
    pub fn engine(settings: &Settings) -> Result<Box<dyn Engine>, Box<dyn Error>> {
        Ok(Box::new(Self::start(settings)?))
    }

    fn try_update(&mut self, view: &View) -> Result<(), DataplaneError> {
        self.withdraw(view)?;
        self.publisher.publish(table(&self.settings, view));
        let highest = view.pods.iter().map(|pod| pod.pod.id.get()).max().unwrap_or(0);
        self.highest_pod.store(highest, Ordering::Relaxed);
        self.steer.set_config(&steer_config(&self.settings, self.workers(), view.pods.len()))?;
        self.steer_new(view)?;
        self.view = view.clone();
        Ok(())
    }

    /// Stops steering what is gone or changed.
    fn withdraw(&mut self, view: &View) -> Result<(), DataplaneError> {
        let kept = addresses(&view.pods);
        for (address, pod) in addresses(&self.view.pods) {
            if kept.get(&address) != Some(&pod) {
                self.steer.remove_local(address)?;
            }
        }
        let devices: BTreeSet<_> = view.pods.iter().map(|pod| pod.pod.ifindex).collect();
        for pod in &self.view.pods {
            if !devices.contains(&pod.pod.ifindex) {
                self.steer.detach_pod(pod.pod.ifindex);
            }
        }
        let kept = prefixes(&view.remotes);
        for (prefix, _) in prefixes(&self.view.remotes) {
            if !kept.contains_key(&prefix) {
                self.steer.remove_remote(prefix)?;
            }
        }
        Ok(())
    }

    /// Steers what is new or changed. A pod's addresses are known before its frames are judged by them.
    fn steer_new(&mut self, view: &View) -> Result<(), DataplaneError> {
        let known = addresses(&self.view.pods);
        for (address, pod) in addresses(&view.pods) {
            if known.get(&address) != Some(&pod) {
                self.steer.add_local(address, &pod)?;
            }
        }
        let devices: BTreeSet<_> = self.view.pods.iter().map(|pod| pod.pod.ifindex).collect();
        for pod in &view.pods {
            if !devices.contains(&pod.pod.ifindex) {
                self.steer.attach_pod(pod.pod.ifindex)?;
            }
        }
        let known = prefixes(&self.view.remotes);
        for (prefix, mtu) in prefixes(&view.remotes) {
            if known.get(&prefix) != Some(&mtu) {
                self.steer.add_remote(prefix, largest_inner(&self.settings, mtu))?;
            }
        }
        Ok(())
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
        let in_flight = |pod: &PodView| CreditStatus {
            pod: pod.pod.id.get(),
            in_flight: u64::try_from(credits.in_flight(pod.pod.id)).unwrap_or(0),
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
            pods: self.view.pods.iter().map(in_flight).collect(),
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

/// One worker a core, as far as there are queues: without one a worker could not send.
fn worker_count(settings: &Settings) -> u16 {
    let workers = settings.cores.len().min(settings.queues.max(1) as usize);
    u16::try_from(workers).unwrap_or(u16::MAX)
}

fn steer_config(settings: &Settings, workers: u16, pods: usize) -> SteerConfig {
    let sharers = pods.div_ceil(usize::from(workers.max(1))) as u64 + 1;
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
    }
}

/// The routes of the workers: our own ranges end here, pods and remote ranges are more specific or elsewhere.
fn table(settings: &Settings, view: &View) -> Fib {
    let own = settings.pod_cidrs.iter().map(|cidr| (*cidr, NextHop::Blackhole));
    let pods = addresses(&view.pods).into_iter().map(|(address, pod)| (IpNet::from(address), NextHop::Local(pod)));
    let remotes = view.remotes.iter().flat_map(|remote| {
        let hop = next_hop(settings, remote);
        remote.cidrs.iter().map(move |cidr| (*cidr, hop.clone()))
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

/// The largest inner packet that fits the path and, encapsulated, a chunk of packet memory.
fn largest_inner(settings: &Settings, mtu: u16) -> u16 {
    let outer = if settings.vtep.is_ipv4() { 64 } else { 84 };
    mtu.min(u16::try_from(MAX_FRAME - outer).unwrap_or(u16::MAX))
}

fn addresses(pods: &[PodView]) -> BTreeMap<IpAddr, LocalPod> {
    pods.iter().flat_map(|pod| pod.addresses.iter().map(|address| (*address, pod.pod))).collect()
}

fn prefixes(remotes: &[RemoteView]) -> BTreeMap<IpNet, u16> {
    remotes.iter().flat_map(|remote| remote.cidrs.iter().map(|cidr| (*cidr, remote.mtu))).collect()
}
