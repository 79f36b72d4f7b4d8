//! What is attached where, and that it stays so.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};

use super::link::PinnedLink;
use super::pins::{self, Pins};
use super::tc::Attachment;
use super::{Steer, SteerError, TcChoice, XdpChoice, XdpMode, clsact, link, tc, xdp};
use crate::ids::{HubEnds, IfIndex};

const POD: &str = "pod_steer";
const HUB: &str = "hub_drop";
const HUB_FAR: &str = "hub_deliver";

/// A program on its end of the hub.
#[derive(Debug)]
pub(super) struct HubEnd {
    program: &'static str,
    ifindex: IfIndex,
    attached: Attachment,
}

/// An attachment that somebody else had undone.
#[derive(Debug)]
pub struct Repair {
    pub program: &'static str,
    pub ifindex: IfIndex,
    /// Whether it is there again.
    pub outcome: Result<(), SteerError>,
}

impl Steer {
    /// Attaches `nic_steer` to the uplink, or puts it in the place of an earlier one there, never of another's program.
    /// An attachment to another device, or in a mode that `choice` does not take, is given up.
    pub fn attach_uplink(&mut self, ifindex: IfIndex, choice: XdpChoice) -> Result<XdpMode, SteerError> {
        self.uplink = None;
        let uplink = xdp::attach(&self.pins.link(pins::UPLINK), self.programs.nic_steer.as_fd(), ifindex, choice)?;
        Ok(self.uplink.insert(uplink).mode)
    }

    /// Detaches `nic_steer` from the uplink, whoever attached it.
    pub fn detach_uplink(&mut self) -> Result<(), SteerError> {
        self.uplink = None;
        xdp::detach(&self.pins.link(pins::UPLINK))
    }

    /// Says how pods and the hub are attached from now on; [`TcChoice::Auto`] if this is not called.
    pub fn set_tc(&mut self, choice: TcChoice) {
        self.tc = choice;
    }

    /// Attaches `pod_steer` to the host end of a pod's veth pair, or puts it in the place of an earlier one there.
    pub fn attach_pod(&mut self, ifindex: IfIndex) -> Result<(), SteerError> {
        let pin = self.pins.link(&pins::pod(ifindex));
        let attached = tc::attach(POD, &self.programs.pod_steer, ifindex, &pin, self.tc)?;
        self.pods.insert(ifindex, attached);
        Ok(())
    }

    /// Detaches `pod_steer`, if this value has attached it there.
    pub fn detach_pod(&mut self, ifindex: IfIndex) -> Result<(), SteerError> {
        let Some(attached) = self.pods.remove(&ifindex) else { return Ok(()) };
        attached.detach().map_err(|source| SteerError::Detach { program: POD, ifindex, source })
    }

    /// Detaches `pod_steer` from all devices but those where this value has attached it.
    pub fn detach_other_pods(&self) -> Result<(), SteerError> {
        let ours: Vec<_> = self.pods.keys().map(|ifindex| pins::pod(*ifindex)).collect();
        self.pins.remove_pods(|name| ours.iter().any(|our| our == name))
    }

    /// Attaches `hub_drop` and `hub_deliver` to the hub's ends, or puts them in the places of earlier ones there.
    pub fn attach_hub(&mut self, hub: HubEnds) -> Result<(), SteerError> {
        self.hub.clear();
        for (program, ifindex) in [(HUB, hub.near), (HUB_FAR, hub.far)] {
            let end = self.attach_hub_end(program, ifindex)?;
            self.hub.push(end);
        }
        Ok(())
    }

    fn attach_hub_end(&self, program: &'static str, ifindex: IfIndex) -> Result<HubEnd, SteerError> {
        let (own, pin): (&OwnedFd, _) = match program {
            HUB => (&self.programs.hub_drop, pins::HUB),
            _ => (&self.programs.hub_deliver, pins::HUB_FAR),
        };
        let attached = tc::attach(program, own, ifindex, &self.pins.link(pin), self.tc)?;
        Ok(HubEnd { program, ifindex, attached })
    }

    /// Attaches again what somebody else has detached, and pins what has lost its pin. Returns what was not as it
    /// should be.
    pub fn repair(&mut self) -> Vec<Repair> {
        let mut repairs = Vec::new();
        if let Some(lost) = self.uplink.as_ref().filter(|uplink| !uplink.link.is_on(uplink.ifindex)) {
            let (pin, program) = (self.pins.link(pins::UPLINK), self.programs.nic_steer.as_fd());
            let (ifindex, attached) = (lost.ifindex, xdp::attach(&pin, program, lost.ifindex, lost.choice));
            let outcome = attached.map(|uplink| self.uplink = Some(uplink));
            repairs.push(Repair { program: "nic_steer", ifindex, outcome });
        }
        let mut hub = mem::take(&mut self.hub);
        for lost in hub.iter_mut().filter(|end| !end.attached.is_on(end.ifindex)) {
            let HubEnd { program, ifindex, .. } = *lost;
            let outcome = self.attach_hub_end(program, ifindex).map(|end| *lost = end);
            repairs.push(Repair { program, ifindex, outcome });
        }
        self.hub = hub;
        let lost: Vec<_> = self.pods.iter().filter(|(ifindex, pod)| !pod.is_on(**ifindex)).map(|(i, _)| *i).collect();
        for ifindex in lost {
            repairs.push(Repair { program: POD, ifindex, outcome: self.attach_pod(ifindex) });
        }
        repairs.extend(self.pin_again());
        repairs
    }

    /// Pins the links whose pins somebody else has removed.
    fn pin_again(&self) -> Vec<Repair> {
        let uplink = self.uplink.iter().map(|uplink| ("nic_steer", uplink.ifindex, &uplink.link));
        let hub = self.hub.iter().filter_map(|end| Some((end.program, end.ifindex, end.attached.link()?)));
        let pods = self.pods.iter().filter_map(|(ifindex, pod)| Some((POD, *ifindex, pod.link()?)));
        let bare = uplink.chain(hub).chain(pods).filter(|(_, ifindex, link)| link.is_on(*ifindex) && !link.is_pinned());
        bare.map(|(program, ifindex, link)| Repair { program, ifindex, outcome: self.pin_link(link) }).collect()
    }

    fn pin_link(&self, link: &PinnedLink) -> Result<(), SteerError> {
        self.pins.make_dirs()?;
        link.pin()
    }
}

/// The programs that others have attached to a pod's device by tcx, by their ids. Ours is the one that `pins`, those of
/// the network namespace of the calling thread, hold there; while it is not pinned, because somebody has removed the
/// pin, it is known by its name.
pub fn foreign_programs(pins: Option<&Pins>, ifindex: IfIndex) -> Result<Vec<u32>, SteerError> {
    let failed = |source| SteerError::Query { ifindex, source };
    let mut programs = link::tcx_programs(ifindex).map_err(failed)?;
    let pin = pins.filter(|_| !programs.is_empty()).map(|pins| pins.link(&pins::pod(ifindex)));
    let link = pin.map_or(Ok(None), |pin| PinnedLink::open(&pin)).map_err(failed)?;
    let place = link.map_or(Ok(None), |link| link.place()).map_err(failed)?;
    programs.retain(|program| match place {
        Some((_, ours)) => *program != ours,
        None => !clsact::is_named(*program, &[POD]),
    });
    Ok(programs)
}

/// Whether a filter at a device's ingress is in our place there. If another's program runs in it, ours cannot be
/// attached, which is told.
pub fn is_our_filter(kind: &str, priority: u32, handle: u32) -> bool {
    kind == "bpf" && (priority, handle) == (clsact::PLACE, clsact::PLACE)
}

/// Detaches all that any [`Steer`] has attached in the network namespace of the calling thread, and removes its pins;
/// says whether there was anything. Filters, which are not pinned, are looked for on `devices`. Goes on after an error
/// and returns the first.
pub fn remove(pins: Option<Pins>, devices: &[IfIndex]) -> Result<bool, SteerError> {
    let mut any = pins.is_some();
    let mut result = pins.map_or(Ok(()), Pins::remove);
    for &ifindex in devices {
        match detach_filter(ifindex) {
            Ok(detached) => any |= detached,
            Err(source) => result = result.and(Err(SteerError::Detach { program: POD, ifindex, source })),
        }
    }
    result.map(|()| any)
}

fn detach_filter(ifindex: IfIndex) -> io::Result<bool> {
    // libbpf wants a descriptor where it asks for none
    let any = File::open("/dev/null")?;
    clsact::detach(any.as_fd(), ifindex, &[POD, HUB, HUB_FAR])
}
