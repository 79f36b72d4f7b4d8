//! A hash of the inner flow, which becomes the outer UDP source port so that the receiver's
//! queues and the paths between share the load (RFC 7348 section 5).

use super::{Ipv4, Ipv6, Protocol};

/// Odd constants with as many ones as zeros, from the digits of pi.
const KEYS: [u64; 4] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345, 0xa409_3822_299f_31d1, 0x082e_fa98_ec4e_6c89];

/// The flow of a packet that starts with the header `ip`: addresses, protocol, and the ports of
/// TCP and UDP. Directions hash differently.
#[inline]
pub fn flow_hash_v4(ip: Ipv4<'_>, packet: &[u8]) -> u64 {
    let [k0, k1, k2, k3] = KEYS;
    let addresses = u64::from(ip.src()) << 32 | u64::from(ip.dst());
    let rest = protocol_and_ports(ip.protocol(), packet.get(Ipv4::LEN..));
    mix(mix(addresses ^ k0, rest ^ k1) ^ k2, k3)
}

/// [`flow_hash_v4`] for IPv6; the flow label takes no part.
#[inline]
pub fn flow_hash_v6(ip: Ipv6<'_>, packet: &[u8]) -> u64 {
    let [k0, k1, k2, k3] = KEYS;
    let [s0, s1] = halves(ip.src());
    let [d0, d1] = halves(ip.dst());
    let rest = protocol_and_ports(ip.protocol(), packet.get(Ipv6::LEN..));
    mix(mix(s0 ^ k0, s1 ^ k1) ^ rest ^ k3, mix(d0 ^ k2, d1 ^ k1) ^ k0)
}

/// How many outer flows the inner ones become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Entropy {
    /// As many as there are dynamic ports.
    #[default]
    Full,
    /// 16 to each peer, so that a burst of many inner flows has some packets of each outer one: still more than most
    /// receivers have queues.
    Few,
}

impl Entropy {
    /// A UDP source port in the dynamic range, 49152 to 65535 (RFC 7348 section 5, RFC 6335 section 6).
    #[inline]
    pub fn port(self, hash: u64) -> u16 {
        let [.., high, low] = hash.to_be_bytes();
        let port = 0xc000 | u16::from_be_bytes([high, low]);
        match self {
            Self::Full => port,
            Self::Few => port & 0xfc00,
        }
    }
}

#[inline]
fn protocol_and_ports(protocol: Protocol, l4: Option<&[u8]>) -> u64 {
    let ports = match l4.and_then(<[u8]>::first_chunk) {
        Some(ports) if protocol.has_ports() => u32::from_be_bytes(*ports),
        _ => 0,
    };
    u64::from(ports) << 8 | u64::from(protocol.0)
}

#[inline]
fn halves(number: u128) -> [u64; 2] {
    [(number >> 64) as u64, (number & 0xffff_ffff_ffff_ffff) as u64]
}

/// Multiplies to 128 bits and folds the halves together.
#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let [high, low] = halves(u128::from(a) * u128::from(b));
    high ^ low
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::sample::{L4, Sample};

    fn hash(packet: &[u8]) -> u64 {
        Ipv4::parse(packet)
            .map(|ip| flow_hash_v4(ip, packet))
            .or_else(|_| Ipv6::parse(packet).map(|ip| flow_hash_v6(ip, packet)))
            .unwrap()
    }

    fn sample(v6: bool) -> Sample {
        let (src, dst) = (0xfd00_0244_0001_0002 << 32 | 0x0af4_0102, 0xfd00_0244_0002_0003 << 32 | 0x0af4_0203);
        let l4 = L4::Tcp { sequence: 0, flags: 0, options: Vec::new() };
        Sample { v6, l4, src, dst, tos: 0, ttl: 64, id: 0, df: true, ports: (40000, 443), payload: Vec::new() }
    }

    /// Neighbouring flows are what a receiver sees: one pod pair with counting ports, one service with counting pods.
    #[test]
    fn neighbouring_flows_spread_over_queues() {
        for v6 in [false, true] {
            for vary in [0, 1, 2] {
                let mut queues = [[0u32; 16]; 2];
                for i in 0..4096u16 {
                    let mut sample = sample(v6);
                    match vary {
                        0 => sample.ports.0 = 32768 + i,
                        1 => sample.dst += u128::from(i),
                        _ => sample.src += u128::from(i),
                    }
                    let hash = hash(&sample.build());
                    queues[0][usize::from(Entropy::Full.port(hash) % 16)] += 1;
                    queues[1][usize::from(Entropy::Few.port(hash) / 1024 % 16)] += 1;
                }
                // 256 expected, standard deviation 15.5.
                let even = queues.iter().flatten().all(|n| (170..=342).contains(n));
                assert!(even, "v6 {v6}, vary {vary}: {queues:?}");
            }
        }
    }

    #[test]
    fn every_part_of_the_flow_counts() {
        for v6 in [false, true] {
            let plain = sample(v6);
            let packets = [
                plain.clone(),
                Sample { src: plain.src ^ 1, ..plain.clone() },
                Sample { dst: plain.dst ^ 1, ..plain.clone() },
                Sample { src: plain.dst, dst: plain.src, ..plain.clone() },
                Sample { ports: (443, 40000), ..plain.clone() },
                Sample { ports: (40001, 443), ..plain.clone() },
                Sample { l4: L4::Udp, ..plain.clone() },
                Sample { l4: L4::Icmp, ..plain },
            ];
            let hashes: HashSet<_> = packets.iter().map(|sample| hash(&sample.build())).collect();
            assert_eq!(hashes.len(), packets.len());
        }
    }

    proptest! {
        #[test]
        fn one_flow_keeps_one_dynamic_port(sample in Sample::any(50), ttl in 1u8.., id: u16, tos: u8) {
            let other = Sample { ttl, id, tos, payload: Vec::new(), ..sample.clone() };
            prop_assert_eq!(hash(&sample.build()), hash(&other.build()));
            for entropy in [Entropy::Full, Entropy::Few] {
                prop_assert!(entropy.port(hash(&other.build())) >= 49152);
            }
        }
    }
}
