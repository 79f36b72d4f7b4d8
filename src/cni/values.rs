//! The forms of names and addresses in a call.

use std::net::IpAddr;

/// Whether a text is what the specification takes as container id and as network name: letters, digits and `_.-`, the
/// first a letter or a digit.
pub(super) fn is_identifier(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    first && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// An address, with or without the length of a prefix, which is not used: pods have addresses of their own and share no
/// subnet.
pub(super) fn parse_address(text: &str) -> Option<IpAddr> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let fits = |prefix: &str| prefix.parse::<u8>().is_ok_and(|prefix| prefix <= bits);
    prefix.is_none_or(fits).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_with_and_without_a_prefix() {
        for good in ["10.244.1.7", "10.244.1.7/24", "10.244.1.7/0", "fd00::7", "fd00::7/128"] {
            assert_eq!(parse_address(good), good.split('/').next().unwrap().parse().ok(), "{good}");
        }
        for bad in ["", "/", "10.244.1.7/", "10.244.1.7/33", "fd00::7/129", "10.244.1.7/24/24", "10.244.1", "a/8"] {
            assert_eq!(parse_address(bad), None, "{bad}");
        }
    }
}
