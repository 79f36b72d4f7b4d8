//! Tries out what the data plane will need, in a network namespace that ends with the trial.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use super::super::evidence::Trials;
use crate::control::netlink::{LinkSettings, Netlink, NetlinkError, Veth, VethEnd, Vxlan};
use crate::control::netns::Netns;
use crate::frame::{Pool, Region, RegionError};
use crate::ids::{IfIndex, QueueId};
use crate::packet::{self, Sender};
use crate::steer::{Trial, XdpMode};
use crate::wire::{Mac, Vni};
use crate::xsk::{self, Binding, Options, Socket};

/// Names and sizes that no other is in the way of: the namespace is new.
const NEAR: &str = "near";
const FAR: &str = "far";
const MTU: u32 = 1500;
const CHUNKS: u32 = 256;
const RING: u32 = 64;

/// Tries everything once.
pub fn run() -> Trials {
    match Netns::within_new(inside) {
        Ok(trials) => Trials { namespace: Some(Ok(())), ..trials },
        // In a namespace that others use only what leaves nothing there is tried.
        Err(error) => Trials {
            namespace: Some(Err(error)),
            programs: Some(Trial::load().map(drop)),
            packet_socket: Some(packet_socket()),
            ..Trials::default()
        },
    }
}

fn inside() -> Trials {
    let mut trials = Trials { packet_socket: Some(packet_socket()), ..Trials::default() };
    let pair = veth();
    trials.vxlan = pair.as_ref().ok().map(|near| vxlan(*near));
    let near = pair.as_ref().ok().copied();
    trials.veth = Some(pair.map(drop));
    let programs = Trial::load();
    if let (Ok(programs), Some(near)) = (&programs, near) {
        trials.xdp = Some(programs.attach_xdp(near, XdpMode::Native).map(drop));
        trials.tcx = Some(programs.attach_tcx(near).map(drop));
    }
    trials.programs = Some(programs.map(drop));
    if let Some(near) = near {
        match xdp_socket(near) {
            Err(xsk::Error::Open(error)) => trials.xdp_socket = Some(Err(error)),
            bound => (trials.xdp_socket, trials.xdp_queue) = (Some(Ok(())), Some(bound.map_err(refusal))),
        }
    }
    trials
}

/// One end of a veth pair, up.
fn veth() -> io::Result<IfIndex> {
    let end = |name: &str| VethEnd { name: name.to_owned(), mac: None };
    let veth = Veth { near: end(NEAR), far: end(FAR), far_netns: None, mtu: MTU };
    let make = || {
        let mut netlink = Netlink::open()?;
        netlink.add_veth(&veth)?;
        for name in [NEAR, FAR] {
            let index = netlink.link(name)?.map_or(IfIndex::NONE, |link| link.index);
            netlink.set_link(index, LinkSettings { up: Some(true), ..LinkSettings::default() })?;
        }
        Ok(netlink.link(NEAR)?.map_or(IfIndex::NONE, |link| link.index))
    };
    make().map_err(|error| os_error(&error))
}

fn vxlan(uplink: IfIndex) -> io::Result<()> {
    let local = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let Some(vni) = Vni::new(1) else { return Ok(()) };
    let vxlan = Vxlan { vni, port: 8472, local, uplink, udp_checksum: false, gbp: false };
    let make = || Netlink::open()?.add_vxlan("tunnel", Mac([2, 0, 0, 0, 0, 1]), MTU - 50, &vxlan);
    make().map_err(|error| os_error(&error))
}

fn packet_socket() -> io::Result<()> {
    match Sender::open() {
        Ok(_) => Ok(()),
        Err(packet::Error::Open(error)) => Err(error),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Opens an AF_XDP socket on a device, as a worker does, and closes it.
fn xdp_socket(ifindex: IfIndex) -> Result<(), xsk::Error> {
    let memory = |error: RegionError| xsk::Error::Register(io::Error::other(error));
    let (region, mut pool) = Region::map(CHUNKS).map_err(memory)?;
    let options = Options { ifindex, queue: QueueId(0), binding: Binding::Copy, ring_size: RING, fill: RING };
    let opened = Socket::open(region, &mut pool, &options).map(|socket| pool.absorb(socket.close()));
    unmap(region, pool);
    opened
}

fn unmap(region: Region, pool: Pool) {
    let whole = region.unmap(pool).is_ok();
    debug_assert!(whole, "a closed socket has no frames");
}

fn refusal(error: xsk::Error) -> io::Error {
    match error {
        xsk::Error::Open(source)
        | xsk::Error::Register(source)
        | xsk::Error::Rings(source)
        | xsk::Error::Bind { source, .. }
        | xsk::Error::NoZeroCopy { source, .. } => source,
        taken @ xsk::Error::Taken { .. } => io::Error::new(io::ErrorKind::ResourceBusy, taken),
    }
}

fn os_error(error: &NetlinkError) -> io::Error {
    error.errno().map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}
