//! CHECK: whether what ADD told the runtime is what the daemon has made.

use std::path::Path;

use super::call::Check;
use super::result::{CniResult, Interface};
use crate::control::api::Pod;
use crate::wire::Mac;

impl Check {
    /// The first thing in the result of ADD, or missing from it, that is not as the pod is. What plugins later in the
    /// chain have added is theirs.
    pub(super) fn difference(&self, pod: &Pod) -> Option<String> {
        let CniResult { interfaces, ips, .. } = &self.expected;
        if !is_same_path(&pod.netns, &self.netns) {
            return Some(format!("it is in {}, not in {}", pod.netns.display(), self.netns.display()));
        }
        let inside = |interface: &Interface| interface.name == pod.ifname && interface.is_inside();
        let Some(index) = interfaces.iter().position(inside) else {
            return Some(format!("`prevResult` has no {} in a sandbox", pod.ifname));
        };
        let sandbox = interfaces[index].sandbox.as_deref().unwrap_or_default();
        if !is_same_path(Path::new(sandbox), &self.netns) {
            return Some(format!("`prevResult` has {} in {sandbox}", pod.ifname));
        }
        if let Some(fault) = interfaces[index].mac_fault(&pod.mac) {
            return Some(fault);
        }
        let Some(host) = interfaces.iter().find(|end| end.name == pod.host_ifname && !end.is_inside()) else {
            return Some(format!("`prevResult` has no {} on the node", pod.host_ifname));
        };
        if let Some(fault) = host.mac_fault(&pod.host_mac) {
            return Some(fault);
        }
        let told: Vec<_> = ips.iter().filter(|ip| ip.interface == Some(index)).map(|ip| ip.address.addr()).collect();
        let lost = told.iter().find(|address| !pod.addresses.contains(address));
        if let Some(address) = lost {
            return Some(format!("{address} of `prevResult` is not an address of it"));
        }
        let untold = pod.addresses.iter().find(|address| !told.contains(address));
        untold.map(|address| format!("`prevResult` lacks its address {address}"))
    }
}

impl Interface {
    fn is_inside(&self) -> bool {
        self.sandbox.as_ref().is_some_and(|sandbox| !sandbox.is_empty())
    }

    fn mac_fault(&self, mac: &str) -> Option<String> {
        let told = self.mac.as_deref()?;
        let is_same = told.to_ascii_lowercase().parse::<Mac>().is_ok_and(|told| told.to_string() == mac);
        (!is_same).then(|| format!("`prevResult` has {} with the MAC {told}, it is {mac}", self.name))
    }
}

/// Whether two names of a network namespace are one: `/var/run` is `/run`.
fn is_same_path(one: &Path, other: &Path) -> bool {
    let plain = |path: &Path| match path.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => path.to_owned(),
    };
    plain(one) == plain(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::call::Call;
    use crate::cni::environment::Variables;
    use crate::cni::result::tests::pod;

    fn check(result: &str) -> Box<Check> {
        let variables = Variables {
            command: Some("CHECK".into()),
            container_id: Some("c1".into()),
            netns: Some("/run/netns/c1".into()),
            ifname: Some("eth0".into()),
            args: None,
        };
        let config = format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"podwire","prevResult":{result}}}"#);
        match Call::parse(&variables, config.as_bytes()) {
            Ok(Call::Check(check)) => check,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_add_told_is_compared_member_by_member() {
        let told = CniResult::default().extended(&pod(), Path::new("/var/run/netns/c1"), None);
        let told = told.into_json(crate::cni::Version::V1_0_0).unwrap();
        assert_eq!(check(&told).difference(&pod()), None);
        let cases = [
            ("/var/run/netns/c1", "/run/netns/c2", "has eth0 in /run/netns/c2"),
            (r#""name":"eth0""#, r#""name":"eth1""#, "no eth0 in a sandbox"),
            (r#","sandbox":"/var/run/netns/c1""#, "", "no eth0 in a sandbox"),
            (r#""name":"pw7""#, r#""name":"pw8""#, "no pw7 on the node"),
            ("0a:58:0a:f4:01:05", "0a:58:0a:f4:01:06", "eth0 with the MAC 0a:58:0a:f4:01:06"),
            ("0a:58:a9:fe:01:01", "x", "pw7 with the MAC x"),
            ("10.244.1.5/32", "10.244.1.6/32", "10.244.1.6 of `prevResult`"),
            (
                r#"{"interface":1,"address":"fd00:244:1::5/128""#,
                r#"{"address":"fd00:244:1::5/128""#,
                "lacks its address fd00:244:1::5",
            ),
        ];
        for (is, was, reason) in cases {
            assert!(told.contains(is), "{is} in {told}");
            let difference = check(&told.replace(is, was)).difference(&pod()).unwrap();
            assert!(difference.contains(reason), "{difference}");
        }
        let elsewhere = Pod { netns: "/run/netns/other".into(), ..pod() };
        assert!(check(&told).difference(&elsewhere).unwrap().contains("in /run/netns/other"));
    }
}
