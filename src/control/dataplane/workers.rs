use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use ipnet::IpNet;

use super::seat::{Common, Seat};
use super::steered::addresses;
use super::{DataplaneError, worker_count};
use crate::config::Bulk;
use crate::control::trace::Plan;
use crate::control::view::{DataplaneStatus, RemoteView, Settings, TrafficStatus, View};
use crate::fib::{Fib, NextHop, Publisher, Remote};
use crate::ids::{PodId, WorkerId};
use crate::steer::{Steer, XdpMode};
use crate::trace::{Feed, Tap};
use crate::wire::{OuterParams, OuterTemplate, TunnelEnd};
use crate::worker::Fault;

/// The outer time to live, as the kernel's VXLAN device sends it.
const OUTER_TTL: u8 = 64;

/// The running workers, and the table between them and control.
#[derive(Debug)]
pub struct Workers {
    settings: Settings,
    /// None: the kernel receives, and the workers get what is theirs by the hub.
    xdp: Option<XdpMode>,
    publisher: Publisher<Fib>,
    seats: Vec<Seat>,
    highest_pod: Arc<AtomicU16>,
}

impl Workers {
    /// Opens the ports and starts the workers, which know the routes of `view` from the first packet on.
    pub fn start(
        steer: &Steer,
        settings: &Settings,
        xdp: Option<XdpMode>,
        view: &View,
    ) -> Result<Self, DataplaneError> {
        let workers = worker_count(settings);
        let mut publisher = Publisher::new(table(settings, view));
        let highest_pod = Arc::new(AtomicU16::new(highest(view)));
        let common = Common { settings, steer, xdp, workers, highest_pod: &highest_pod };
        let seats: Result<_, _> =
            (0..workers).map(|worker| Seat::start(common, publisher.reader(), WorkerId(worker))).collect();
        Ok(Self { settings: settings.clone(), xdp, publisher, seats: seats?, highest_pod })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Gives the workers the routes of `view`.
    pub fn publish(&mut self, view: &View) {
        self.publisher.publish(table(&self.settings, view));
        self.highest_pod.store(highest(view), Ordering::Relaxed);
    }

    /// Frees what is no longer read; an error when a worker cannot go on.
    pub fn maintain(&mut self) -> Result<(), DataplaneError> {
        self.publisher.reclaim();
        for seat in &mut self.seats {
            seat.measure_load();
            seat.check()?;
        }
        Ok(())
    }

    /// Ends the workers when they have carried what was claimed for them.
    pub fn stop(&mut self) {
        for seat in &self.seats {
            seat.ask_to_stop();
        }
        for seat in &mut self.seats {
            seat.join();
        }
    }

    /// Has each worker trace, into a feed of its own.
    pub fn trace(&self, plan: &Plan) -> Result<Vec<Arc<Feed>>, String> {
        let mut feeds = Vec::new();
        for seat in &self.seats {
            let feed = Arc::new(Feed::new(plan.filter.clone(), plan.sample, plan.snap));
            if !seat.trace(Some(Tap::new(Arc::clone(&feed)))) {
                self.end_trace();
                return Err(format!("worker {} does not read its inbox", seat.id().0));
            }
            feeds.push(feed);
        }
        Ok(feeds)
    }

    /// Has no worker trace any more; false when one does not read its inbox.
    pub fn end_trace(&self) -> bool {
        let deaf = self.seats.iter().filter(|seat| !seat.trace(None));
        deaf.count() == 0
    }

    /// Has a worker suffer.
    pub fn provoke(&self, worker: u16, fault: Fault) -> Result<(), Box<dyn Error>> {
        let seat = self.seats.get(usize::from(worker)).ok_or_else(|| format!("there is no worker {worker}"))?;
        if seat.provoke(fault) { Ok(()) } else { Err(format!("worker {worker} does not read its inbox").into()) }
    }

    /// Whether TCP connections that move much are left to the kernel path.
    pub fn leave_bulk(&self) -> bool {
        match self.settings.bulk {
            Bulk::Workers => false,
            Bulk::Kernel => true,
            Bulk::Auto => self.seats.iter().flat_map(Seat::queues).any(|queue| !queue.zero_copy),
        }
    }

    /// Whether AF_XDP receives.
    pub fn have_xdp(&self) -> bool {
        self.xdp.is_some()
    }

    /// What the workers have carried for a pod.
    pub fn pod(&self, pod: PodId) -> TrafficStatus {
        self.seats.iter().map(|seat| seat.pod(pod)).sum()
    }

    /// All but what only the steering programs know.
    pub fn status(&self) -> DataplaneStatus {
        DataplaneStatus {
            xdp: match self.xdp {
                Some(XdpMode::Native) => "native",
                Some(XdpMode::Generic) => "generic",
                None => "off",
            }
            .to_owned(),
            frames: self.seats.iter().map(Seat::chunks).sum(),
            memory: if self.seats.iter().all(Seat::has_hugepages) { "hugepages" } else { "pages" }.to_owned(),
            leaves_bulk: self.leave_bulk(),
            queues: self.seats.iter().flat_map(Seat::queues).collect(),
            workers: self.seats.iter().map(|seat| seat.status(&self.settings)).collect(),
            ..DataplaneStatus::default()
        }
    }
}

fn highest(view: &View) -> u16 {
    view.pods.iter().map(|pod| pod.pod.id.get()).max().unwrap_or(0)
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
    let (src_mac, dst_mac) = (settings.uplink_mac, remote.dst_mac);
    let Some(inner_dst) = remote.vtep_mac else {
        let outer = OuterTemplate::direct(src_mac, dst_mac, remote.underlay);
        return NextHop::Remote(Remote { outer, mtu: remote.mtu });
    };
    let first = TunnelEnd { underlay: settings.vtep, mac: settings.vtep_mac };
    let second = settings.second.filter(|end| end.underlay.is_ipv6() == remote.underlay.is_ipv6());
    let own = second.unwrap_or(first);
    let outer = OuterTemplate::new(&OuterParams {
        src_mac,
        dst_mac,
        local: own.underlay,
        remote: remote.underlay,
        port: settings.port,
        vni: settings.vni,
        ttl: OUTER_TTL,
        inner_src: own.mac,
        inner_dst,
        udp_checksum: settings.udp_checksum,
    });
    // The configuration refuses peers of another family than ours.
    outer.map_or(NextHop::Blackhole, |outer| NextHop::Remote(Remote { outer, mtu: remote.mtu }))
}
