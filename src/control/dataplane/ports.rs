use std::sync::Arc;

use super::memory::{fill_target, ring_size};
use super::seat::Common;
use super::{DataplaneError, largest_inner};
use crate::config::{BusyPoll, ZeroCopy};
use crate::control::view::{BusyPollRefusal, Settings};
use crate::counters::Traffic;
use crate::frame::{Pool, Region};
use crate::ids::{PodId, QueueId, WorkerId};
use crate::packet::{Fanout, Ring, Sender};
use crate::port::{Hub, Outlet, PodOutlet, Share, Uplink};
use crate::steer::XdpMode;
use crate::wire::OuterTemplate;
use crate::worker::Inbox;
use crate::xsk::{Binding, Deferral, Driver, NapiPage, Options, Socket};

/// What a worker is given to carry packets between, and what wakes it besides.
#[derive(Debug)]
pub struct Ports {
    pub uplink: Uplink,
    pub hub: Hub,
    pub inbox: Arc<Inbox>,
    pub queues: Vec<OpenQueue>,
    /// By pod id.
    pub pods: Arc<[Traffic]>,
}

/// An open queue of the uplink.
#[derive(Debug)]
pub struct OpenQueue {
    pub id: QueueId,
    /// As read back from the kernel.
    pub zero_copy: bool,
    /// Why the worker is not to run its NAPI.
    pub refusal: Option<BusyPollRefusal>,
    pub napi: Arc<NapiPage>,
    pub traffic: Arc<Traffic>,
}

impl Ports {
    /// Opens the ports of one worker. On an error all frames are back in `pool`.
    pub fn open(common: Common<'_>, region: Region, pool: &mut Pool, worker: WorkerId) -> Result<Self, DataplaneError> {
        let failed = |source| DataplaneError::Worker { worker: worker.0, source };
        let inbox = Arc::new(Inbox::new().map_err(failed)?);
        let pods: Arc<[Traffic]> = (0..=PodId::MAX).map(|_| Traffic::default()).collect();
        let hub = open_hub(common, worker, Arc::clone(&pods))?;
        let sockets = open_sockets(common, region, pool, worker)?;
        let outlet = match open_outlet(common, &sockets) {
            Ok(outlet) => outlet,
            Err(error) => {
                for (_, socket) in sockets {
                    pool.absorb(socket.close());
                }
                return Err(error);
            }
        };
        let refusal = refusal(common);
        let (queues, sockets) = sockets
            .into_iter()
            .map(|(id, mut socket)| {
                let traffic = Arc::new(Traffic::default());
                let queue = OpenQueue {
                    id,
                    zero_copy: socket.zero_copy(),
                    refusal: refusal.or_else(|| run_napi(id, &mut socket)),
                    napi: socket.napi(),
                    traffic: Arc::clone(&traffic),
                };
                (queue, (socket, traffic))
            })
            .unzip();
        Ok(Self { uplink: Uplink::new(sockets, outlet), hub, inbox, queues, pods })
    }
}

/// Why workers are not to run the NAPIs of the uplink's queues, as far as it shows before they do.
fn refusal(Common { settings, xdp, .. }: Common<'_>) -> Option<BusyPollRefusal> {
    let Settings { uplink, uplink_name, .. } = settings;
    if settings.busy_poll == BusyPoll::Off {
        return Some(BusyPollRefusal::Off);
    }
    if xdp.is_none() {
        return Some(BusyPollRefusal::NoXdp);
    }
    if Driver::of(uplink_name).is_ok_and(|driver| driver.has_no_interrupts()) {
        return Some(BusyPollRefusal::Veth);
    }
    match Deferral::of(uplink_name, *uplink) {
        None => Some(BusyPollRefusal::Unseen),
        Some(deferral) => (!deferral.holds_back()).then_some(BusyPollRefusal::NotDeferred),
    }
}

/// Has the reader of a queue run its NAPI, or says that it may not.
fn run_napi(queue: QueueId, socket: &mut Socket) -> Option<BusyPollRefusal> {
    let error = socket.run_napi().err()?;
    tracing::warn!(queue = queue.0, %error, "the kernel does not let the worker poll the queue (SO_PREFER_BUSY_POLL)");
    Some(BusyPollRefusal::Refused)
}

fn open_hub(common: Common<'_>, worker: WorkerId, pods: Arc<[Traffic]>) -> Result<Hub, DataplaneError> {
    let Common { settings, steer, workers, highest_pod, .. } = common;
    // A group of the hub's own: groups are numbered per network namespace, and so are devices.
    let near = settings.hub.near;
    let group = u16::try_from(near.0 % (1 << 16)).unwrap_or_default();
    let fanout = Fanout { group, program: steer.fanout_fd() };
    // Without XDP as many frames come from the wire, which have their outer headers.
    let (slots, outer) = match common.xdp {
        Some(_) => (settings.hub_slots, 0),
        None => (settings.hub_slots.saturating_mul(2), OuterTemplate::len_over(settings.vtep)),
    };
    let packet = settings.mtu.min(largest_inner(settings.underlays()));
    let largest = packet.saturating_add(u16::try_from(outer).unwrap_or_default());
    let ring = Ring::open(near, slots, largest, (workers > 1).then_some(fanout))?;
    let share = Share { worker: worker.0, workers };
    let outlet = PodOutlet::new(Sender::open()?, settings.pod_trains.then_some(near));
    Ok(Hub::new(ring, outlet, steer.credits(), share, Arc::clone(highest_pod), pods))
}

/// The way out through the kernel's stack, where AF_XDP would copy.
fn open_outlet(common: Common<'_>, sockets: &[(QueueId, Socket)]) -> Result<Option<Outlet>, DataplaneError> {
    if sockets.iter().all(|(_, socket)| socket.zero_copy()) {
        return Ok(None);
    }
    let settings = common.settings;
    Ok(Some(Outlet::new(settings.uplink, Sender::open()?, settings.underlays().collect())))
}

/// Opens the sockets of the queues that are dealt to a worker: every `workers`th, beginning with one that can send.
fn open_sockets(
    common: Common<'_>,
    region: Region,
    pool: &mut Pool,
    worker: WorkerId,
) -> Result<Vec<(QueueId, Socket)>, DataplaneError> {
    let queues = (u32::from(worker.0)..common.settings.queues.receive).step_by(usize::from(common.workers));
    let count = u32::try_from(queues.len()).unwrap_or(u32::MAX);
    let mut sockets = Vec::with_capacity(queues.len());
    for queue in queues.map(QueueId) {
        match open_socket(common, region, pool, worker, queue, count) {
            Ok(socket) => sockets.push((queue, socket)),
            Err(error) => {
                for (_, socket) in sockets {
                    pool.absorb(socket.close());
                }
                return Err(error);
            }
        }
    }
    Ok(sockets)
}

/// Opens one of a worker's `count` sockets and has the uplink's frames for it steered there.
fn open_socket(
    common: Common<'_>,
    region: Region,
    pool: &mut Pool,
    worker: WorkerId,
    queue: QueueId,
    count: u32,
) -> Result<Socket, DataplaneError> {
    let Common { settings, steer, xdp, .. } = common;
    let binding = match (settings.zero_copy, xdp) {
        (ZeroCopy::Require, _) => Binding::ZeroCopy,
        // Some drivers grant zero-copy under generic XDP, and then refuse to send.
        (ZeroCopy::Off, _) | (ZeroCopy::Auto, Some(XdpMode::Generic) | None) => Binding::Copy,
        (ZeroCopy::Auto, Some(XdpMode::Native)) => Binding::Auto,
    };
    let chunks = region.chunks();
    let (ring_size, fill) = (ring_size(chunks, count), fill_target(chunks, count));
    let socket = Socket::open(region, pool, &Options { ifindex: settings.uplink, queue, binding, ring_size, fill })?;
    if let Err(error) = steer.register_queue(queue, worker, socket.fd()) {
        pool.absorb(socket.close());
        return Err(error.into());
    }
    Ok(socket)
}
