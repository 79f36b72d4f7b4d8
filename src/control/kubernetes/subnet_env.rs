//! Flannel's `subnet.env`, which its CNI plugin and others read (flannel `pkg/subnet/subnet.go`, `WriteSubnetFile`).

use std::fmt::Write as _;

use ipnet::IpNet;

use crate::config::from_bits;
use crate::config::{Config, to_bits};

/// The text for a configuration that has its ranges. `mtu` is that of pods, in bytes.
pub fn text(config: &Config, mtu: u16) -> String {
    let mut text = String::new();
    for (is_ipv6, prefix) in [(false, "FLANNEL_"), (true, "FLANNEL_IPV6_")] {
        let of_family = |ranges: &[IpNet]| ranges.iter().find(|range| range.addr().is_ipv6() == is_ipv6).copied();
        let (cluster, own) = (of_family(&config.cluster.pod_cidrs), of_family(&config.node.pod_cidrs));
        let Some((cluster, own)) = cluster.zip(own) else { continue };
        let first = from_bits(own.addr(), to_bits(own.network()) + 1);
        let _ = writeln!(text, "{prefix}NETWORK={cluster}\n{prefix}SUBNET={first}/{}", own.prefix_len());
    }
    let _ = writeln!(text, "FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ={}", config.cluster.masquerade);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_what_flannel_writes() {
        let config = Config::parse(
            "[node]\nname='a'\nuplink='e'\npod_cidrs=['10.244.1.0/24','fd00:244:1::/64']\n[cluster]\nmasquerade=true\n\
             pod_cidrs=['10.244.0.0/16','fd00:244::/32']\n[dataplane]\nmode='kernel'\n",
        );
        let expected = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
            FLANNEL_IPV6_NETWORK=fd00:244::/32\nFLANNEL_IPV6_SUBNET=fd00:244:1::1/64\n\
            FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(text(&config.unwrap(), 1450), expected);
    }
}
