use std::net::IpAddr;
use std::os::fd::RawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
    InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, State,
};

use super::{Netlink, NetlinkError};
use crate::ids::IfIndex;
use crate::wire::{Mac, Vni};

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: IfIndex,
    pub name: String,
    pub alias: String,
    /// `None` when it is not Ethernet.
    pub mac: Option<Mac>,
    pub mtu: u32,
    /// Whether it is set up, not whether it has a carrier.
    pub up: bool,
    /// Whether the kernel has seen its carrier (operational state "up", RFC 2863): it sends.
    /// Devices without a carrier of their own never say so.
    pub running: bool,
    /// The bridge that it is a port of.
    pub master: Option<IfIndex>,
    /// The device below it; of a veth the other end, by its index in that one's namespace.
    pub lower: Option<IfIndex>,
    pub kind: LinkKind,
    pub conf: LinkConf,
}

/// The name of the device `index`, or its number when it is not among `links`.
pub fn name_of(links: &[Link], index: IfIndex) -> String {
    links.iter().find(|link| link.index == index).map_or_else(|| format!("#{index}"), |link| link.name.clone())
}

/// Settings that `/proc/sys/net/ipv4/conf/DEVICE` and `ipv6/conf/DEVICE` hold too; `None` where the device has
/// none of the family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkConf {
    /// Of IPv4.
    pub forwarding: Option<i32>,
    /// Of IPv4.
    pub rp_filter: Option<i32>,
    pub arp_ignore: Option<i32>,
    pub accept_ra: Option<i32>,
    pub addr_gen_mode: Option<i32>,
    pub disable_ipv6: Option<i32>,
}

/// The kinds of device that podwire makes, and all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    Vxlan(Vxlan),
    /// A VXLAN device of another shape: learning, with a default destination, or the like.
    OtherVxlan,
    Veth,
    Bridge,
    Other,
}

/// A VXLAN device for unicast peers, without learning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub vni: Vni,
    pub port: u16,
    pub local: IpAddr,
    /// The device that carries the outer frames.
    pub uplink: IfIndex,
    /// Whether outer UDP checksums are sent over IPv4.
    pub udp_checksum: bool,
    /// Whether group policies are taken and sent.
    pub gbp: bool,
}

/// A veth pair to make.
#[derive(Clone, Debug)]
pub struct Veth {
    pub near: VethEnd,
    pub far: VethEnd,
    /// The network namespace of the far end; ours when `None`. Must stay open for the call.
    pub far_netns: Option<RawFd>,
    pub mtu: u32,
}

/// One end of a veth pair.
#[derive(Clone, Debug)]
pub struct VethEnd {
    pub name: String,
    /// Random when `None`.
    pub mac: Option<Mac>,
}

/// Settings of a device; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkSettings {
    pub up: Option<bool>,
    pub mtu: Option<u32>,
    pub mac: Option<Mac>,
    pub alias: Option<&'static str>,
}

impl Netlink {
    /// All devices.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let objects = self.dump(&RouteNetlinkMessage::GetLink(without_figures()))?;
        Ok(objects.into_iter().filter_map(read).collect())
    }

    /// The device called `name`.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = without_figures();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.query(RouteNetlinkMessage::GetLink(message)) {
            Ok(object) => Ok(object.and_then(read)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a VXLAN device, down.
    pub fn add_vxlan(&mut self, name: &str, mac: Mac, mtu: u32, vxlan: &Vxlan) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(vxlan.attributes())),
            ]),
        ];
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Makes a veth pair, both ends down.
    pub fn add_veth(&mut self, veth: &Veth) -> Result<(), NetlinkError> {
        let end = |end: &VethEnd| {
            let mut message = LinkMessage::default();
            message.attributes = vec![LinkAttribute::IfName(end.name.clone()), LinkAttribute::Mtu(veth.mtu)];
            message.attributes.extend(end.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
            message
        };
        let mut far = end(&veth.far);
        far.attributes.extend(veth.far_netns.map(LinkAttribute::NetNsFd));
        let mut near = end(&veth.near);
        near.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]));
        self.change(RouteNetlinkMessage::NewLink(near), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Makes a bridge, down, whose MAC does not follow its ports'.
    pub fn add_bridge(&mut self, name: &str, mac: Mac, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Makes a device a port of the bridge `master`, or of none.
    pub fn set_master(&mut self, index: IfIndex, master: Option<IfIndex>) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index.0;
        message.attributes.push(LinkAttribute::Controller(master.unwrap_or(IfIndex::NONE).0));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Has a bridge send frames back by the port that they came by.
    pub fn set_hairpin(&mut self, port: IfIndex) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = port.0;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ]));
        self.change(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Applies `settings` to a device.
    pub fn set_link(&mut self, index: IfIndex, settings: LinkSettings) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index.0;
        if let Some(up) = settings.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        message.attributes.extend(settings.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(settings.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        message.attributes.extend(settings.alias.map(|alias| LinkAttribute::IfAlias(alias.to_owned())));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Gives a device another name. Kernels before 6.2 refuse while it is up (`EBUSY`).
    pub fn rename_link(&mut self, index: IfIndex, name: &str) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index.0;
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Removes a device, for a veth its other end too.
    pub fn delete_link(&mut self, index: IfIndex) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index.0;
        self.change(RouteNetlinkMessage::DelLink(message), 0)
    }
}

impl Vxlan {
    fn attributes(&self) -> Vec<InfoVxlan> {
        let attributes = [
            InfoVxlan::Id(self.vni.get()),
            InfoVxlan::Link(self.uplink.0),
            match self.local {
                IpAddr::V4(local) => InfoVxlan::Local(local),
                IpAddr::V6(local) => InfoVxlan::Local6(local),
            },
            InfoVxlan::Port(self.port),
            InfoVxlan::Learning(false),
            InfoVxlan::UDPCsum(self.udp_checksum),
            InfoVxlan::UDPZeroCsumTX(false),
            InfoVxlan::UDPZeroCsumRX(false),
        ];
        attributes.into_iter().chain(self.gbp.then_some(InfoVxlan::Gbp)).collect()
    }

    /// `None` when the device is not of the shape that podwire makes: it learns, has a default
    /// destination, or lacks what ours has.
    fn from_attributes(attributes: &[InfoVxlan]) -> Option<Self> {
        let (mut vni, mut port, mut local, mut uplink, mut udp_checksum) = (None, None, None, None, true);
        let gbp = attributes.contains(&InfoVxlan::Gbp);
        for attribute in attributes {
            match attribute {
                InfoVxlan::Id(id) => vni = Vni::new(*id),
                InfoVxlan::Port(number) => port = Some(*number),
                InfoVxlan::Local(address) => local = Some(IpAddr::V4(*address)),
                InfoVxlan::Local6(address) => local = Some(IpAddr::V6(*address)),
                InfoVxlan::Link(index) => uplink = Some(IfIndex(*index)),
                InfoVxlan::UDPCsum(on) => udp_checksum = *on,
                InfoVxlan::Learning(true)
                | InfoVxlan::CollectMetadata(true)
                | InfoVxlan::UDPZeroCsumTX(true)
                | InfoVxlan::Gpe
                | InfoVxlan::Group(_)
                | InfoVxlan::Group6(_) => return None,
                _ => {}
            }
        }
        Some(Self { vni: vni?, port: port?, local: local?, uplink: uplink?, udp_checksum, gbp })
    }
}

/// Asks for a device without its packet counts, which are half of the answer.
fn without_figures() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

fn read(object: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = object else { return None };
    let mut link = Link {
        index: IfIndex(message.header.index),
        name: String::new(),
        alias: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        running: false,
        master: None,
        lower: None,
        kind: LinkKind::Other,
        conf: LinkConf::default(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Address(bytes) => link.mac = <[u8; 6]>::try_from(bytes).ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::OperState(state) => link.running = state == State::Up,
            LinkAttribute::Controller(index) => link.master = Some(IfIndex(index)),
            LinkAttribute::Link(index) => link.lower = Some(IfIndex(index)),
            LinkAttribute::LinkInfo(infos) => link.kind = kind(&infos),
            LinkAttribute::AfSpecUnspec(families) => link.conf = conf(&families),
            _ => {}
        }
    }
    Some(link)
}

fn conf(families: &[AfSpecUnspec]) -> LinkConf {
    let mut conf = LinkConf::default();
    for family in families {
        match family {
            AfSpecUnspec::Inet(attributes) => attributes.iter().for_each(|attribute| {
                if let AfSpecInet::DevConf(own) = attribute {
                    conf.forwarding = Some(own.forwarding);
                    conf.rp_filter = Some(own.rp_filter);
                    conf.arp_ignore = Some(own.arp_ignore);
                }
            }),
            AfSpecUnspec::Inet6(attributes) => attributes.iter().for_each(|attribute| {
                if let AfSpecInet6::DevConf(own) = attribute {
                    conf.accept_ra = Some(own.accept_ra);
                    conf.addr_gen_mode = Some(own.addr_gen_mode);
                    conf.disable_ipv6 = Some(own.disable_ipv6);
                }
            }),
            _ => {}
        }
    }
    conf
}

fn kind(infos: &[LinkInfo]) -> LinkKind {
    let vxlan = |info: &LinkInfo| match info {
        LinkInfo::Data(InfoData::Vxlan(attributes)) => Vxlan::from_attributes(attributes),
        _ => None,
    };
    if infos.contains(&LinkInfo::Kind(InfoKind::Veth)) {
        LinkKind::Veth
    } else if infos.contains(&LinkInfo::Kind(InfoKind::Bridge)) {
        LinkKind::Bridge
    } else if infos.contains(&LinkInfo::Kind(InfoKind::Vxlan)) {
        infos.iter().find_map(vxlan).map_or(LinkKind::OtherVxlan, LinkKind::Vxlan)
    } else {
        LinkKind::Other
    }
}
