//! Keys and values of the maps as bytes, field by field as `bpf/maps.h` declares them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{PodPath, SteerConfig, Tunnel};
use crate::fib::LocalPod;
use crate::ids::IfIndex;
use crate::wire::{Mac, TunnelEnd};

/// `struct config`.
pub(super) fn config(config: &SteerConfig) -> [u8; 128] {
    let first = TunnelEnd { underlay: config.vtep, mac: config.vtep_mac };
    let of_family = |is_ipv6| {
        let mut ends = std::iter::once(first).chain(config.second);
        end(ends.find(|end| end.underlay.is_ipv6() == is_ipv6))
    };
    concat(&[
        &of_family(false),
        &of_family(true),
        &config.stale_ns.to_ne_bytes(),
        &config.slots.to_ne_bytes(),
        &config.bulk_bytes.to_ne_bytes(),
        &config.wake_ns.to_ne_bytes(),
        &config.vni.get().to_ne_bytes(),
        &config.max_frame.to_ne_bytes(),
        &config.max_packet.to_ne_bytes(),
        &config.pod_mtu.to_ne_bytes(),
        &u32::from(config.workers).to_ne_bytes(),
        &u32::from(config.rings).to_ne_bytes(),
        &config.hub.0.to_ne_bytes(),
        &(config.nat as u32).to_ne_bytes(),
        &config.port.to_be_bytes(),
        &config.uplink_mac.0,
        &[u8::from(config.known_vteps_only), u8::from(config.takes_bare), u8::from(config.leaves_tcp)],
        &[0; 5],
    ])
}

/// `struct vtep`.
fn end(end: Option<TunnelEnd>) -> [u8; 24] {
    let Some(TunnelEnd { underlay, mac }) = end else { return [0; 24] };
    concat(&[&vtep(underlay), &mac.0, &[1, 0]])
}

/// `struct local_pod`.
pub(super) fn local_pod(pod: &LocalPod, path: PodPath) -> [u8; 20] {
    let LocalPod { id, ifindex, mac, gateway_mac } = pod;
    let by_kernel = u8::from(path == PodPath::Kernel);
    concat(&[&ifindex.0.to_ne_bytes(), &id.get().to_ne_bytes(), &mac.0, &gateway_mac.0, &[by_kernel, 0]])
}

/// `struct remote`.
pub(super) fn remote(mtu: u16, tunnel: Option<Tunnel>) -> [u8; 20] {
    let Tunnel { device, peer_mac, own_mac } =
        tunnel.unwrap_or(Tunnel { device: IfIndex::NONE, peer_mac: Mac([0; 6]), own_mac: Mac([0; 6]) });
    concat(&[&u32::from(mtu).to_ne_bytes(), &device.0.to_ne_bytes(), &peer_mac.0, &own_mac.0])
}

/// An address as a key of `vteps`.
pub(super) fn vtep(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// An address as a key of `local4` or `local6`.
pub(super) fn address(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A prefix as a key of `remote4` or `remote6`: its length, then its address without host bits.
pub(super) fn prefix(prefix: IpNet) -> Vec<u8> {
    let mut key = u32::from(prefix.prefix_len()).to_ne_bytes().to_vec();
    key.extend(address(prefix.network()));
    key
}

/// The `index`th word of `struct tally`.
pub(super) fn word(tally: &[u8], index: usize) -> Option<u64> {
    tally.chunks_exact(8).nth(index).and_then(|word| word.try_into().ok()).map(u64::from_ne_bytes)
}

/// The parts one after the other.
///
/// # Panics
/// When they do not fill `N` bytes: a mistake of this module, found by its tests.
fn concat<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    parts.concat().try_into().expect("the parts fill the struct")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PodId;
    use crate::steer::{NatCheck, btf};
    use crate::wire::Vni;

    /// The members of `structure` in `bytes`, cut out by the offsets that the compiler chose for the programs.
    fn check(structure: &str, bytes: &[u8], expected: &[(&str, &[u8])]) {
        let (size, offsets) = btf::layout(structure);
        assert_eq!(bytes.len(), size, "size of struct {structure}");
        for (member, value) in expected {
            let offset = offsets[*member];
            assert_eq!(&bytes[offset..offset + value.len()], *value, "{structure}.{member}");
        }
    }

    #[test]
    fn config_is_written_where_the_programs_read_it() {
        let bytes = config(&SteerConfig {
            vtep: "192.168.1.2".parse().unwrap(),
            vtep_mac: Mac([2, 3, 4, 5, 6, 7]),
            second: Some(TunnelEnd { underlay: "fd00::2".parse().unwrap(), mac: Mac([6; 6]) }),
            port: 8472,
            vni: Vni::new(0x0001_0203).unwrap(),
            max_frame: 2048,
            max_packet: 1998,
            pod_mtu: 1450,
            workers: 3,
            rings: 4,
            stale_ns: 20_000_000,
            slots: 64,
            bulk_bytes: 1 << 33,
            wake_ns: 1 << 34,
            hub: IfIndex(9),
            nat: NatCheck::Kernel,
            uplink_mac: Mac([8, 9, 10, 11, 12, 13]),
            known_vteps_only: true,
            takes_bare: true,
            leaves_tcp: true,
        });
        let expected: &[(&str, &[u8])] = &[
            ("vtep4", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 2, 2, 3, 4, 5, 6, 7, 1]),
            ("vtep6", &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 6, 6, 6, 6, 6, 6, 1]),
            ("uplink_mac", &[8, 9, 10, 11, 12, 13]),
            ("known_vteps_only", &[1]),
            ("takes_bare", &[1]),
            ("leaves_tcp", &[1]),
            ("stale_ns", &20_000_000_u64.to_ne_bytes()),
            ("slots", &64_u64.to_ne_bytes()),
            ("bulk_bytes", &(1_u64 << 33).to_ne_bytes()),
            ("wake_ns", &(1_u64 << 34).to_ne_bytes()),
            ("vni", &0x0001_0203_u32.to_ne_bytes()),
            ("max_frame", &2048_u32.to_ne_bytes()),
            ("max_packet", &1998_u32.to_ne_bytes()),
            ("pod_mtu", &1450_u32.to_ne_bytes()),
            ("workers", &3_u32.to_ne_bytes()),
            ("rings", &4_u32.to_ne_bytes()),
            ("hub", &9_u32.to_ne_bytes()),
            ("port", &[0x21, 0x18]),
            ("nat", &2_u32.to_ne_bytes()),
        ];
        check("config", &bytes, expected);
        assert_eq!(btf::enumerators("nat"), ["NAT_NONE", "NAT_LOOKUP", "NAT_KERNEL"]);
        assert_eq!([NatCheck::None, NatCheck::Lookup, NatCheck::Kernel].map(|nat| nat as u32), [0, 1, 2]);
    }

    #[test]
    fn a_pod_is_written_where_the_programs_read_it() {
        let pod = LocalPod {
            id: PodId::new(0x0102).unwrap(),
            ifindex: IfIndex(0x0304_0506),
            mac: Mac([1; 6]),
            gateway_mac: Mac([2; 6]),
        };
        let expected: &[(&str, &[u8])] = &[
            ("ifindex", &0x0304_0506_u32.to_ne_bytes()),
            ("id", &0x0102_u16.to_ne_bytes()),
            ("mac", &[1; 6]),
            ("gateway_mac", &[2; 6]),
            ("by_kernel", &[1]),
        ];
        check("local_pod", &local_pod(&pod, PodPath::Kernel), expected);
        check("local_pod", &local_pod(&pod, PodPath::Fast), &[("by_kernel", &[0])]);
        let tunnel = Tunnel { device: IfIndex(7), peer_mac: Mac([3; 6]), own_mac: Mac([4; 6]) };
        let expected: &[(&str, &[u8])] = &[
            ("mtu", &1450_u32.to_ne_bytes()),
            ("tunnel", &7_u32.to_ne_bytes()),
            ("peer_mac", &[3; 6]),
            ("own_mac", &[4; 6]),
        ];
        check("remote", &remote(1450, Some(tunnel)), expected);
        check("remote", &remote(1450, None), &[("tunnel", &[0; 4])]);
    }

    #[test]
    fn the_shared_entries_hold_the_words_that_workers_count_on() {
        let (size, words) = btf::layout("heartbeat");
        assert_eq!((size, words["beat_ns"], words["asleep"]), (64, 0, 8));
        assert_eq!((words["called_ns"], words["left_ns"]), (16, 40));
        let (size, words) = btf::layout("credit");
        assert_eq!((size, words["produced"], words["consumed"]), (64, 0, 8));
        assert_eq!((words["refused"], words["quota"], words["gone"]), (16, 24, 32));
    }

    #[test]
    fn prefixes_lose_their_host_bits() {
        let key = prefix("10.244.2.9/24".parse().unwrap());
        check("lpm_key4", &key, &[("prefix_len", &24_u32.to_ne_bytes()), ("addr", &[10, 244, 2, 0])]);
        let key = prefix("fd00:244:2::9/64".parse().unwrap());
        let network = address("fd00:244:2::".parse().unwrap());
        check("lpm_key6", &key, &[("prefix_len", &64_u32.to_ne_bytes()), ("addr", &network)]);
        check("key6", &network, &[("addr", &network)]);
    }
}
