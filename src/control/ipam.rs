//! Which addresses a pod gets: pure choice out of the node's ranges.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why a pod cannot have the addresses that it should.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("address {0} is outside of this node's ranges ({1}); choose one inside, or leave --ip out")]
    Foreign(IpAddr, String),
    #[error("address {0} is reserved: the first of a range is the VXLAN device's, the last is never given to a pod")]
    Reserved(IpAddr),
    #[error("address {0} is taken; detach the pod that has it, or choose another one")]
    Taken(IpAddr),
    #[error("address {0} is a second one of its family; a pod has at most one of each")]
    Second(IpAddr),
    #[error("no address is free in {0}; detach a pod, or give the node a larger range")]
    Exhausted(IpNet),
}

/// The addresses of a new pod: exactly `requested`, or when that is empty the lowest free one of
/// each range in `cidrs`. At most `taken.len() + 1` steps a range.
pub fn choose(cidrs: &[IpNet], taken: &BTreeSet<IpAddr>, requested: &[IpAddr]) -> Result<Vec<IpAddr>, AddressError> {
    if requested.is_empty() {
        return cidrs.iter().map(|cidr| lowest_free(cidr, taken).ok_or(AddressError::Exhausted(*cidr))).collect();
    }
    for (index, address) in requested.iter().enumerate() {
        check(cidrs, taken, *address)?;
        if requested[..index].iter().any(|earlier| earlier.is_ipv4() == address.is_ipv4()) {
            return Err(AddressError::Second(*address));
        }
    }
    Ok(requested.to_vec())
}

fn check(cidrs: &[IpNet], taken: &BTreeSet<IpAddr>, address: IpAddr) -> Result<(), AddressError> {
    let Some(cidr) = cidrs.iter().find(|cidr| cidr.contains(&address)) else {
        let ranges: Vec<_> = cidrs.iter().map(ToString::to_string).collect();
        return Err(AddressError::Foreign(address, ranges.join(", ")));
    };
    if address == cidr.network() || address == cidr.broadcast() {
        return Err(AddressError::Reserved(address));
    }
    if taken.contains(&address) {
        return Err(AddressError::Taken(address));
    }
    Ok(())
}

fn lowest_free(cidr: &IpNet, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let (first, last) = (bits(cidr.network()), bits(cidr.broadcast()));
    (first + 1..last).map(|value| with_bits(cidr, value)).find(|address| !taken.contains(address))
}

/// How many addresses of a range pods can have.
pub fn capacity(cidr: &IpNet) -> u64 {
    let inner = (bits(cidr.broadcast()) - bits(cidr.network())).saturating_sub(1);
    u64::try_from(inner).unwrap_or(u64::MAX)
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of `cidr`'s family with the value `bits`.
fn with_bits(cidr: &IpNet, bits: u128) -> IpAddr {
    match (cidr, u32::try_from(bits)) {
        (IpNet::V4(_), Ok(bits)) => Ipv4Addr::from_bits(bits).into(),
        _ => Ipv6Addr::from_bits(bits).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn a_pod_gets_the_lowest_free_address_of_each_family() {
        let cidrs = nets(&["10.244.1.0/24", "fd00:244:1::/64"]);
        let taken = ips(&["10.244.1.1", "10.244.1.2", "10.244.1.4", "fd00:244:1::1"]).into_iter().collect();
        assert_eq!(choose(&cidrs, &taken, &[]), Ok(ips(&["10.244.1.3", "fd00:244:1::2"])));
    }

    #[test]
    fn the_first_and_the_last_address_are_never_given() {
        let cidrs = nets(&["10.244.1.0/30"]);
        let mut taken = BTreeSet::new();
        for expected in ["10.244.1.1", "10.244.1.2"] {
            let chosen = choose(&cidrs, &taken, &[]).unwrap();
            assert_eq!(chosen, ips(&[expected]));
            taken.extend(chosen);
        }
        assert_eq!(choose(&cidrs, &taken, &[]), Err(AddressError::Exhausted(cidrs[0])));
        for reserved in ips(&["10.244.1.0", "10.244.1.3"]) {
            assert_eq!(choose(&cidrs, &taken, &[reserved]), Err(AddressError::Reserved(reserved)));
        }
    }

    #[test]
    fn ranges_too_small_for_a_pod_and_at_the_end_of_the_address_space_are_exhausted_not_wrapped() {
        for net in ["10.244.1.0/32", "10.244.1.0/31", "255.255.255.254/31", "ffff::ffff/128"] {
            let cidrs = nets(&[net]);
            assert_eq!(choose(&cidrs, &BTreeSet::new(), &[]), Err(AddressError::Exhausted(cidrs[0])), "{net}");
        }
    }

    #[test]
    fn requested_addresses_are_given_as_they_are_or_refused_by_name() {
        let cidrs = nets(&["10.244.1.0/24", "fd00:244:1::/64"]);
        let taken: BTreeSet<_> = ips(&["10.244.1.9"]).into_iter().collect();
        let wanted = ips(&["fd00:244:1::77", "10.244.1.7"]);
        assert_eq!(choose(&cidrs, &taken, &wanted), Ok(wanted));
        let refused = |list: &[&str]| choose(&cidrs, &taken, &ips(list)).unwrap_err();
        assert_eq!(refused(&["10.244.1.9"]), AddressError::Taken("10.244.1.9".parse().unwrap()));
        assert_eq!(refused(&["10.244.1.7", "10.244.1.8"]), AddressError::Second("10.244.1.8".parse().unwrap()));
        let foreign = refused(&["10.244.2.7"]).to_string();
        assert!(foreign.contains("10.244.2.7") && foreign.contains("10.244.1.0/24, fd00:244:1::/64"), "{foreign}");
    }
}
