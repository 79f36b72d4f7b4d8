//! What is attached where, and that it stays so.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};

use super::link::PinnedLink;
use super::pins::{self, Pins};
use super::tc::Attachment;
use super::{Steer, SteerError, TcChoice, UplinkChoice, XdpMode, clsact, link, tc, xdp};
use crate::ids::{HubEnds, IfIndex};

const POD: &str = "pod_steer";
const HUB: &str = "hub_drop";
const HUB_FAR: &str = "hub_deliver";
const UPLINK_TC: &str = "nic_steer_tc";
const TUNNEL: &str = "tunnel_steer";

/// A program at the ingress of the uplink, or on its end of the hub.
#[derive(Debug)]
pub(super) struct End {
    program: &'static str,
    ifindex: IfIndex,
    attached: Attachment,
}

/// Whose device it is that comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guest {
    Pod,
    /// A VXLAN device of ours.
    Tunnel,
}

impl Guest {
    fn program(self) -> &'static str {
        match self {
            Self::Pod => POD,
            Self::Tunnel => TUNNEL,
        }
    }

    fn pin(self, ifindex: IfIndex) -> String {
        match self {
            Self::Pod => pins::pod(ifindex),
            Self::Tunnel => pins::tunnel(ifindex),
        }
    }
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
    /// Attaches `nic_steer` to the uplink, or puts it in the place of an earlier one there, never of another's program;
    /// without XDP, which is told by `None`, it is `nic_steer_tc`. An attachment to another device, or in a way that
    /// `choice` does not take, is given up.
    pub fn attach_uplink(&mut self, ifindex: IfIndex, choice: UplinkChoice) -> Result<Option<XdpMode>, SteerError> {
        self.uplink = None;
        let (pin, program) = (self.pins.link(pins::UPLINK), self.programs.nic_steer.as_fd());
        let xdp = |mode| xdp::attach(&pin, program, ifindex, mode);
        let uplink = match choice {
            UplinkChoice::Native => Some(xdp(XdpMode::Native)?),
            UplinkChoice::Generic => Some(xdp(XdpMode::Generic)?),
            UplinkChoice::Tc => None,
            UplinkChoice::AnyXdp | UplinkChoice::Auto => match xdp(XdpMode::Native) {
                Ok(native) => Some(native),
                Err(error @ SteerError::Attach { .. }) if choice == UplinkChoice::AnyXdp => {
                    tracing::info!(%ifindex, %error, "taking generic XDP");
                    Some(xdp(XdpMode::Generic)?)
                }
                Err(error @ (SteerError::Attach { .. } | SteerError::UplinkTaken { .. }))
                    if choice == UplinkChoice::Auto =>
                {
                    tracing::info!(%ifindex, %error, "doing without XDP");
                    None
                }
                Err(error) => return Err(error),
            },
        };
        let Some(uplink) = uplink else {
            self.attach(UPLINK_TC, ifindex)?;
            xdp::detach(&pin)?;
            return Ok(None);
        };
        let mode = self.uplink.insert(uplink).mode;
        self.detach_uplink_tc(ifindex).map(|()| Some(mode))
    }

    /// Detaches `nic_steer_tc`, whoever has attached it.
    fn detach_uplink_tc(&mut self, ifindex: IfIndex) -> Result<(), SteerError> {
        self.detach_end(UPLINK_TC)?;
        self.detach_anyones(UPLINK_TC, pins::UPLINK_TC, ifindex)
    }

    /// Detaches a program from a device, whoever has attached it: its link is pinned by that name, or it is a filter.
    fn detach_anyones(&self, program: &'static str, pin: &str, ifindex: IfIndex) -> Result<(), SteerError> {
        let may_be_filter = self.tc == TcChoice::Clsact || !link::has_tcx(ifindex);
        PinnedLink::open(&self.pins.link(pin))
            .and_then(|link| link.map_or(Ok(()), PinnedLink::remove))
            .and_then(|()| if may_be_filter { detach_filter(ifindex, &[program]) } else { Ok(false) })
            .map(drop)
            .map_err(|source| SteerError::Detach { program, ifindex, source })
    }

    /// Says how pods and the hub are attached from now on; [`TcChoice::Auto`] if this is not called.
    pub fn set_tc(&mut self, choice: TcChoice) {
        self.tc = choice;
    }

    /// Attaches `pod_steer` to the host end of a pod's veth pair, or puts it in the place of an earlier one there.
    pub fn attach_pod(&mut self, ifindex: IfIndex) -> Result<(), SteerError> {
        self.attach_device(Guest::Pod, ifindex)
    }

    /// Detaches `pod_steer`, if this value has attached it there.
    pub fn detach_pod(&mut self, ifindex: IfIndex) -> Result<(), SteerError> {
        let Some((_, attached)) = self.devices.remove(&ifindex) else { return Ok(()) };
        attached.detach().map_err(|source| SteerError::Detach { program: POD, ifindex, source })
    }

    /// Attaches `tunnel_steer` to a VXLAN device of ours, or puts it in the place of an earlier one there.
    pub fn attach_tunnel(&mut self, ifindex: IfIndex) -> Result<(), SteerError> {
        self.attach_device(Guest::Tunnel, ifindex)
    }

    /// Detaches `tunnel_steer` from a VXLAN device, whoever has attached it.
    pub fn detach_tunnel(&mut self, ifindex: IfIndex) -> Result<(), SteerError> {
        self.devices.remove(&ifindex);
        self.detach_anyones(TUNNEL, &pins::tunnel(ifindex), ifindex)
    }

    fn attach_device(&mut self, guest: Guest, ifindex: IfIndex) -> Result<(), SteerError> {
        let program = match guest {
            Guest::Pod => &self.programs.pod_steer,
            Guest::Tunnel => &self.programs.tunnel_steer,
        };
        let attached = tc::attach(guest.program(), program, ifindex, &self.pins.link(&guest.pin(ifindex)), self.tc)?;
        self.devices.insert(ifindex, (guest, attached));
        Ok(())
    }

    /// Detaches the programs of pods' devices and tunnels' from all but those where this value has attached them.
    pub fn detach_other_devices(&self) -> Result<(), SteerError> {
        let ours: Vec<_> = self.devices.iter().map(|(ifindex, (guest, _))| guest.pin(*ifindex)).collect();
        self.pins.remove_devices(|name| ours.iter().any(|our| our == name))
    }

    /// Attaches `hub_drop` and `hub_deliver` to the hub's ends, or puts them in the places of earlier ones there.
    pub fn attach_hub(&mut self, hub: HubEnds) -> Result<(), SteerError> {
        self.attach(HUB, hub.near)?;
        self.attach(HUB_FAR, hub.far)
    }

    /// Attaches the program of an end to a device, and gives up where it was before.
    fn attach(&mut self, program: &'static str, ifindex: IfIndex) -> Result<(), SteerError> {
        if self.ends.iter().any(|end| end.program == program && end.ifindex != ifindex) {
            self.detach_end(program)?;
        }
        let end = self.attach_end(program, ifindex)?;
        self.ends.retain(|end| end.program != program);
        self.ends.push(end);
        Ok(())
    }

    fn attach_end(&self, program: &'static str, ifindex: IfIndex) -> Result<End, SteerError> {
        let (own, pin): (&OwnedFd, _) = match program {
            HUB => (&self.programs.hub_drop, pins::HUB),
            HUB_FAR => (&self.programs.hub_deliver, pins::HUB_FAR),
            _ => (&self.programs.nic_steer_tc, pins::UPLINK_TC),
        };
        let attached = tc::attach(program, own, ifindex, &self.pins.link(pin), self.tc)?;
        Ok(End { program, ifindex, attached })
    }

    fn detach_end(&mut self, program: &'static str) -> Result<(), SteerError> {
        let Some(at) = self.ends.iter().position(|end| end.program == program) else { return Ok(()) };
        let End { ifindex, attached, .. } = self.ends.swap_remove(at);
        attached.detach().map_err(|source| SteerError::Detach { program, ifindex, source })
    }

    /// Attaches again what somebody else has detached, and pins what has lost its pin. Returns what was not as it
    /// should be.
    pub fn repair(&mut self) -> Vec<Repair> {
        let mut repairs = Vec::new();
        if let Some(lost) = self.uplink.as_ref().filter(|uplink| !uplink.link.is_on(uplink.ifindex)) {
            let (pin, program) = (self.pins.link(pins::UPLINK), self.programs.nic_steer.as_fd());
            let (ifindex, attached) = (lost.ifindex, xdp::attach(&pin, program, lost.ifindex, lost.mode));
            let outcome = attached.map(|uplink| self.uplink = Some(uplink));
            repairs.push(Repair { program: "nic_steer", ifindex, outcome });
        }
        let mut ends = mem::take(&mut self.ends);
        for lost in ends.iter_mut().filter(|end| !end.attached.is_on(end.ifindex)) {
            let End { program, ifindex, .. } = *lost;
            let outcome = self.attach_end(program, ifindex).map(|end| *lost = end);
            repairs.push(Repair { program, ifindex, outcome });
        }
        self.ends = ends;
        let lost = self.devices.iter().filter(|(ifindex, (_, attached))| !attached.is_on(**ifindex));
        let lost: Vec<_> = lost.map(|(ifindex, (guest, _))| (*guest, *ifindex)).collect();
        for (guest, ifindex) in lost {
            repairs.push(Repair { program: guest.program(), ifindex, outcome: self.attach_device(guest, ifindex) });
        }
        repairs.extend(self.pin_again());
        repairs
    }

    /// Pins the links whose pins somebody else has removed.
    fn pin_again(&self) -> Vec<Repair> {
        let uplink = self.uplink.iter().map(|uplink| ("nic_steer", uplink.ifindex, &uplink.link));
        let ends = self.ends.iter().filter_map(|end| Some((end.program, end.ifindex, end.attached.link()?)));
        let devices = self.devices.iter();
        let devices = devices.filter_map(|(ifindex, (guest, at))| Some((guest.program(), *ifindex, at.link()?)));
        let bare =
            uplink.chain(ends).chain(devices).filter(|(_, ifindex, link)| link.is_on(*ifindex) && !link.is_pinned());
        bare.map(|(program, ifindex, link)| Repair { program, ifindex, outcome: self.pin_link(link) }).collect()
    }

    fn pin_link(&self, link: &PinnedLink) -> Result<(), SteerError> {
        self.pins.make_dirs()?;
        link.pin()
    }
}

/// The programs that others have attached by tcx to a pod's device or a tunnel's, by their ids. Ours is the one that
/// `pins`, those of the network namespace of the calling thread, hold there; while it is not pinned, because somebody has
/// removed the pin, it is known by its name.
pub fn foreign_programs(pins: Option<&Pins>, ifindex: IfIndex) -> Result<Vec<u32>, SteerError> {
    let failed = |source| SteerError::Query { ifindex, source };
    let mut programs = link::tcx_programs(ifindex).map_err(failed)?;
    let pins = pins.filter(|_| !programs.is_empty());
    let pins = pins.map(|pins| [pins::pod(ifindex), pins::tunnel(ifindex)].map(|name| pins.link(&name)));
    let pin = pins.into_iter().flatten().find(|pin| pin.exists());
    let link = pin.map_or(Ok(None), |pin| PinnedLink::open(&pin)).map_err(failed)?;
    let place = link.map_or(Ok(None), |link| link.place()).map_err(failed)?;
    programs.retain(|program| match place {
        Some((_, ours)) => *program != ours,
        None => !clsact::is_named(*program, &[POD, TUNNEL]),
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
        match detach_filter(ifindex, &[POD, HUB, HUB_FAR, UPLINK_TC, TUNNEL]) {
            Ok(detached) => any |= detached,
            Err(source) => result = result.and(Err(SteerError::Detach { program: POD, ifindex, source })),
        }
    }
    result.map(|()| any)
}

/// Detaches the filter on a device if its program bears one of `names`, and says whether one does.
fn detach_filter(ifindex: IfIndex, names: &[&str]) -> io::Result<bool> {
    // libbpf wants a descriptor where it asks for none
    let any = File::open("/dev/null")?;
    clsact::detach(any.as_fd(), ifindex, names)
}
