//! A hash of the inner flow, which becomes the outer UDP source port so that the receiver's
//! queues and the paths between share the load (RFC 7348 section 5).

use super::{Ipv4, Ipv6, Protocol};

/// Odd constants with as many ones as zeros, from the digits of pi.
const KEYS: [u64; 4] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345, 0xa409_3822_299f_31d1, 0x082e_fa98_ec4e_6c89];

/// The flow of a packet that starts with the header `ip`: addresses, protocol, and the ports of
/// TCP and UDP. Directions hash differently.
#[inline]
pub fn flow_hash_v4(ip: &Ipv4, packet: &[u8]) -> u64 {
    let [k0, k1, k2, k3] = KEYS;
    let addresses = u64::from(ip.src) << 32 | u64::from(ip.dst);
    let rest = protocol_and_ports(ip.protocol, packet.get(Ipv4::LEN..));
    mix(mix(addresses ^ k0, rest ^ k1) ^ k2, k3)
}

/// [`flow_hash_v4`] for IPv6; the flow label takes no part.
#[inline]
pub fn flow_hash_v6(ip: &Ipv6, packet: &[u8]) -> u64 {
    let [k0, k1, k2, k3] = KEYS;
    let [s0, s1] = halves(ip.src);
    let [d0, d1] = halves(ip.dst);
    let rest = protocol_and_ports(ip.protocol, packet.get(Ipv6::LEN..));
    mix(mix(s0 ^ k0, s1 ^ k1) ^ rest ^ k3, mix(d0 ^ k2, d1 ^ k1) ^ k0)
}

/// A UDP source port in the dynamic range, 49152 to 65535 (RFC 7348 section 5, RFC 6335 section 6).
#[inline]
pub fn entropy_port(hash: u64) -> u16 {
    let [.., high, low] = hash.to_be_bytes();
    0xc000 | u16::from_be_bytes([high, low])
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
