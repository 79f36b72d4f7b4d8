//! What the programs decide about a frame: `bpf/verdict.h`, with names and words.

use crate::counters::table;

table! {
    /// A program that gives every frame one verdict.
    pub enum Program {
        Nic => "nic_steer", "XDP or, without it, tc on the uplink: frames from the wire";
        Pod => "pod_steer", "tc on the host end of each pod's veth pair: frames from pods";
        Tunnel => "tunnel_steer", "tc on the VXLAN devices: what has come by the kernel path";
    }
}

table! {
    /// What a program decided about a frame.
    pub enum Verdict {
        Claimed => "claimed", "handed to a worker";
        Local => "local", "redirected to another pod of this node inside the kernel";
        Bypass => "bypass", "not taken by a worker, redirected between the pod and the VXLAN device (dataplane.bypass)";
        SpoofIp => "spoof_ip", "the source address is not the pod's";
        SpoofMac => "spoof_mac", "the source MAC is not the pod's";
        PodVlan => "pod_vlan", "VLAN-tagged by a pod, whose source address was not looked at";
        Quota => "quota", "the pod has as many frames on their way to the worker as it may; from the wire, without XDP: those for the pod";
        UnknownVtep => "unknown_vtep", "of a tunnel to our VTEP, but from no peer's VTEP address (dataplane.known_vteps_only)";
        SpoofWire => "spoof_wire", "from the wire without a tunnel, with the source address of a pod of this node";
        NotIp => "not_ip", "neither IPv4 nor IPv6";
        Vlan => "vlan", "VLAN-tagged, outside or inside of a tunnel";
        MultiBuffer => "multi_buffer", "in more than one receive buffer; without XDP: merged with others";
        Truncated => "truncated", "ends inside its headers";
        Malformed => "malformed", "a version or length field does not agree with the bytes that came";
        NotVxlan => "not_vxlan", "neither UDP to our VTEP address and port nor for a pod of this node";
        Bare => "bare", "for a pod, without a tunnel, and the uplink's rp_filter is strict: the kernel judges it (vxlan.direct_routing)";
        OuterOptions => "outer_options", "to our VTEP, with IPv4 options or an IPv6 extension header";
        OuterFragment => "outer_fragment", "a fragment to our VTEP";
        OuterChecksum => "outer_checksum", "no UDP checksum on an IPv6 underlay";
        VxlanFlags => "vxlan_flags", "the I flag unset, or another flag or a reserved bit set";
        VxlanVni => "vxlan_vni", "the VXLAN network identifier is not ours";
        InnerMac => "inner_mac", "the inner destination MAC is not our VTEP's, or the source is ours or multicast";
        NotUnicast => "not_unicast", "multicast, broadcast, link-local, loopback or unspecified";
        Options => "options", "IPv4 options or an IPv6 extension header";
        Fragment => "fragment", "a fragment";
        Protocol => "protocol", "neither TCP, UDP nor ICMP, or a super-packet that is not TCP";
        Ttl => "ttl", "the time to live or hop limit would reach zero";
        TooBig => "too_big", "does not fit the MTU, or a worker's frame";
        UnknownDestination => "unknown_destination", "no pod that the data plane can reach";
        UnknownSource => "unknown_source", "from where the data plane takes no answers to";
        Stale => "stale", "the worker's heartbeat is stale";
        Late => "late", "the pod has as many frames on their way as it may, and the worker sleeps or has not shown itself for a while";
        Behind => "behind", "less than a second after a packet from or to the same pod that no worker takes (merged, or larger than a worker's frame), which it could overtake";
        Asleep => "asleep", "the worker sleeps, and too few come to wake it (dataplane.wake_pps); it goes on to the VXLAN device and past the stack";
        NoSocket => "no_socket", "no AF_XDP socket on the receive queue, or none of the pod's worker: no worker runs";
        Nated => "nated", "of a flow that the node translates (NAT), or that would be taken for one";
        NatUnknown => "nat_unknown", "may be of a translated flow: ICMP, or conntrack cannot be asked";
        ForeignTc => "foreign_tc", "to or from a pod whose host end has a qdisc, a filter or a program of others";
        Bulk => "bulk", "of a TCP connection that moves much, which the kernel path carries better (dataplane.bulk); without XDP: of any";
    }
}

/// Who has the frame after a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A worker, or who is to get it, by a redirect.
    Fast,
    /// The kernel path, as if the program were not there.
    Kernel,
    /// Nobody.
    Dropped,
}

impl Verdict {
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Claimed | Self::Local | Self::Bypass => Outcome::Fast,
            Self::SpoofIp | Self::SpoofMac | Self::PodVlan | Self::Quota | Self::UnknownVtep | Self::SpoofWire => {
                Outcome::Dropped
            }
            _ => Outcome::Kernel,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steer::btf;

    #[test]
    fn names_and_order_agree_with_the_programs() {
        let labels: Vec<_> = Verdict::ALL.iter().map(|verdict| verdict.label()).chain(["count"]).collect();
        let enumerators: Vec<_> = btf::enumerators("verdict")
            .into_iter()
            .map(|name| name.strip_prefix("VERDICT_").unwrap().to_lowercase())
            .collect();
        assert_eq!(enumerators, labels);
        assert_eq!(btf::enumerators("program"), ["PROGRAM_NIC", "PROGRAM_POD", "PROGRAM_TUNNEL", "PROGRAM_COUNT"]);
        assert_eq!(Program::ALL, [Program::Nic, Program::Pod, Program::Tunnel]);
        assert_eq!(btf::layout("tally").0, Verdict::ALL.len() * size_of::<u64>());
    }
}
