//! Flannel's `subnet.env` as its CNI plugin reads it (flannel-io/cni-plugin `flannel.go`).

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{MigrateError, Task};
use crate::control::foreign_file;
use crate::control::kubernetes::subnet_env;

/// The longest file that is read, in bytes.
const MOST_BYTES: u64 = 1 << 16;

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subnet {
    /// The ranges of all pods.
    pub cluster: Vec<IpNet>,
    /// Of each family the range of this node's pods, with their gateway as its address.
    pub gateways: Vec<IpNet>,
    pub mtu: u32,
    /// Whether flanneld masquerades, so that the bridge plugin need not.
    pub masquerade: bool,
}

impl Subnet {
    /// That of the file, or of the configuration where there is no file; with the text of a file to be written.
    pub fn of(task: &Task<'_>, mtu: u32) -> Result<(Self, Option<String>), MigrateError> {
        let malformed = |why| MigrateError::Malformed(task.subnet_env.clone(), why);
        match foreign_file::read(&task.subnet_env, MOST_BYTES) {
            Ok(text) => Ok((Self::parse(&text).map_err(malformed)?, None)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
                let text = subnet_env::text(task.config, mtu);
                let subnet = Self::parse(&text).map_err(|_| {
                    malformed("it is missing, and the configuration does not name the node's range: write it as Flannel does, or have podwire do it (kubernetes.subnet_env)".to_owned())
                })?;
                Ok((subnet, Some(text)))
            }
            Err(error) => Err(MigrateError::Read(task.subnet_env.clone(), error)),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (mut subnet, mut mtu) = (Self::default(), None);
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let range =
                |text: &str| text.parse::<IpNet>().map_err(|_| format!("{key} is {value:?}, which is no range"));
            match key {
                "FLANNEL_NETWORK" | "FLANNEL_IPV6_NETWORK" => {
                    for text in value.split(',') {
                        subnet.cluster.push(range(text)?.trunc());
                    }
                }
                "FLANNEL_SUBNET" | "FLANNEL_IPV6_SUBNET" => subnet.gateways.push(range(value)?),
                "FLANNEL_MTU" => mtu = value.parse().ok(),
                "FLANNEL_IPMASQ" => subnet.masquerade = value == "true",
                _ => {}
            }
        }
        if subnet.gateways.is_empty() || subnet.cluster.is_empty() {
            return Err("it names no range".to_owned());
        }
        subnet.mtu = mtu.ok_or("it names no MTU")?;
        Ok(subnet)
    }

    /// The gateway of the family of `address`, with the length of its range.
    pub fn gateway_for(&self, address: IpAddr) -> Option<IpNet> {
        self.gateways.iter().copied().find(|gateway| gateway.addr().is_ipv6() == address.is_ipv6())
    }
}

/// What holds of any file: it is refused with a reason, or names ranges and a gateway.
#[cfg(fuzzing)]
pub fn fuzz(text: &str) {
    match Subnet::parse(text) {
        Ok(subnet) => {
            assert!(!subnet.cluster.is_empty() && !subnet.gateways.is_empty());
            assert!(subnet.cluster.iter().all(|range| range.addr() == range.network()), "{subnet:?}");
        }
        Err(why) => assert!(!why.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_and_several_networks_are_read() {
        let text = "FLANNEL_NETWORK=10.244.0.0/16,10.250.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
            FLANNEL_IPV6_NETWORK=fd00::/32\nFLANNEL_IPV6_SUBNET=fd00:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        let subnet = Subnet::parse(text).unwrap();
        assert_eq!(subnet.cluster.len(), 3);
        assert_eq!(subnet.gateway_for("fd00::9".parse().unwrap()), Some("fd00:0:1::1/64".parse().unwrap()));
        assert_eq!((subnet.mtu, subnet.masquerade), (1450, true));
    }

    #[test]
    fn what_is_missing_or_malformed_is_named() {
        for (text, said) in [
            ("", "names no range"),
            ("FLANNEL_NETWORK=x\n", "FLANNEL_NETWORK is \"x\""),
            ("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=-1\n", "names no MTU"),
        ] {
            assert!(Subnet::parse(text).unwrap_err().contains(said), "{text}");
        }
    }
}
