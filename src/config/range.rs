//! A run of addresses, from the first to the last.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// Addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// `None` when the ends are of two families or in the wrong order.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv6() == last.is_ipv6() && first <= last).then_some(Self { first, last })
    }

    pub fn first(&self) -> IpAddr {
        self.first
    }

    pub fn last(&self) -> IpAddr {
        self.last
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.first.is_ipv6() && (self.first..=self.last).contains(&address)
    }
}

/// The address as a number; those of one family keep their order.
pub fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of `like`'s family that the number stands for.
pub fn from_bits(like: IpAddr, bits: u128) -> IpAddr {
    match (like, u32::try_from(bits)) {
        (IpAddr::V4(_), Ok(bits)) => Ipv4Addr::from_bits(bits).into(),
        _ => Ipv6Addr::from_bits(bits).into(),
    }
}

/// The same addresses in as few ranges as there can be, in order.
pub(super) fn merge(mut ranges: Vec<AddressRange>) -> Vec<AddressRange> {
    ranges.sort_unstable();
    let mut merged: Vec<AddressRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(before)
                if before.last.is_ipv6() == range.first.is_ipv6()
                    && to_bits(range.first) <= to_bits(before.last).saturating_add(1) =>
            {
                before.last = before.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

impl FromStr for AddressRange {
    type Err = String;

    /// Reads `10.0.0.1-10.0.0.9`, `10.0.0.0/30` or `10.0.0.1`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unfit = || "is not an address, a range such as 10.244.1.10-10.244.1.20, or 10.244.1.16/28".to_owned();
        if let Some((first, last)) = text.split_once('-') {
            let [first, last] = [first, last].map(|end| end.trim().parse::<IpAddr>().map_err(|_| unfit()));
            return Self::new(first?, last?)
                .ok_or_else(|| "is no range: the last address is before the first".to_owned());
        }
        if text.contains('/') {
            let net: IpNet = text.parse().map_err(|_| unfit())?;
            if net.addr() != net.network() {
                return Err(format!("has host bits set; the range is {}", net.trunc()));
            }
            return Ok(Self { first: net.network(), last: net.broadcast() });
        }
        let address = text.parse().map_err(|_| unfit())?;
        Ok(Self { first: address, last: address })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> AddressRange {
        text.parse().unwrap()
    }

    #[test]
    fn reads_addresses_ranges_and_prefixes_and_refuses_the_rest() {
        for (text, shown) in [
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1-10.0.0.9", "10.0.0.1-10.0.0.9"),
            ("10.0.0.1 - 10.0.0.1", "10.0.0.1"),
            ("10.0.0.0/30", "10.0.0.0-10.0.0.3"),
            ("fd00::/127", "fd00::-fd00::1"),
        ] {
            assert_eq!(range(text).to_string(), shown);
        }
        for (text, reason) in [
            ("", "is not an address"),
            ("10.0.0", "is not an address"),
            ("10.0.0.1-", "is not an address"),
            ("10.0.0.0/33", "is not an address"),
            ("10.0.0.9-10.0.0.1", "before the first"),
            ("10.0.0.1-fd00::1", "before the first"),
            ("10.0.0.1/30", "has host bits set; the range is 10.0.0.0/30"),
        ] {
            let error = text.parse::<AddressRange>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn ranges_that_touch_become_one_and_families_stay_apart() {
        let ranges =
            ["10.0.0.5-10.0.0.9", "10.0.0.1-10.0.0.4", "fd00::1", "10.0.0.7", "10.0.0.11", "255.255.255.255", "::"];
        let merged: Vec<_> = merge(ranges.map(range).to_vec()).iter().map(ToString::to_string).collect();
        assert_eq!(merged, ["10.0.0.1-10.0.0.9", "10.0.0.11", "255.255.255.255", "::", "fd00::1"]);
        assert_eq!(merge(vec![range("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), range("::5")]).len(), 1);
    }

    #[test]
    fn a_range_holds_its_ends_and_nothing_of_the_other_family() {
        let range = range("10.0.0.1-10.0.0.9");
        for (address, held) in
            [("10.0.0.0", false), ("10.0.0.1", true), ("10.0.0.9", true), ("10.0.0.10", false), ("::a00:1", false)]
        {
            assert_eq!(range.contains(address.parse().unwrap()), held, "{address}");
        }
    }
}
