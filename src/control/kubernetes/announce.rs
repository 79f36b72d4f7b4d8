//! What this node publishes: Flannel's annotations, ours, and the condition that the network is there, in one
//! strategic-merge patch of the Node's status.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::flannel::{self, Keys};
use super::object::Object;
use crate::config::Mode;
use crate::wire::{Mac, Vni};

/// This node as the others should know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    pub vni: Vni,
    pub vtep_mac: Mac,
    /// The underlay addresses, of the families that are on.
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    pub mode: Mode,
}

impl Announcement {
    /// The annotations, as the operator's overrides on the node will have them.
    fn annotations(&self, own: &Object) -> BTreeMap<&'static str, String> {
        let mut annotations = BTreeMap::from([
            (flannel::MANAGED, "true".to_owned()),
            (flannel::BACKEND_TYPE, flannel::VXLAN.to_owned()),
            (flannel::VERSION, env!("CARGO_PKG_VERSION").to_owned()),
            (flannel::MODE, self.mode.to_string()),
        ]);
        let families: [(Keys, Option<IpAddr>); 2] =
            [(flannel::V4, self.v4.map(IpAddr::from)), (flannel::V6, self.v6.map(IpAddr::from))];
        for (keys, address) in families {
            let Some(address) = address else { continue };
            let overwrite = own.annotation(keys.address_overwrite).filter(|text| !text.is_empty());
            annotations.insert(keys.data, flannel::backend_data(self.vni, self.vtep_mac));
            annotations.insert(keys.address, overwrite.map_or_else(|| address.to_string(), str::to_owned));
        }
        annotations
    }

    /// The patch that makes the Node say all this, at a time in RFC 3339; `None` when it does. Nothing is said of a node
    /// without a pod range: Flannel's nodes would look at it once, fail, and not look again.
    pub fn patch(&self, own: &Object, now: &str) -> Option<Value> {
        if own.pod_cidrs.is_empty() {
            return None;
        }
        let wanted = self.annotations(own);
        let is_annotated = wanted.iter().all(|(key, value)| own.annotation(key) == Some(value));
        if is_annotated && own.is_available {
            return None;
        }
        let mut patch = json!({ "metadata": { "annotations": wanted } });
        if !own.is_available {
            patch["status"] = json!({ "conditions": [{
                "type": "NetworkUnavailable",
                "status": "False",
                "reason": "PodwireIsUp",
                "message": "podwire is running on this node",
                "lastTransitionTime": now,
                "lastHeartbeatTime": now,
            }]});
        }
        Some(patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn announcement() -> Announcement {
        Announcement {
            vni: Vni::new(1).unwrap(),
            vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
            v4: Some(Ipv4Addr::new(192, 168, 1, 2)),
            v6: None,
            mode: Mode::Adaptive,
        }
    }

    fn own() -> Object {
        Object { name: "a".into(), pod_cidrs: vec!["10.244.1.0/24".into()], ..Object::default() }
    }

    /// What the API makes of the patch.
    fn patched(own: &Object, patch: &Value) -> Object {
        let mut own = own.clone();
        let annotations = patch["metadata"]["annotations"].as_object().unwrap();
        own.annotations
            .extend(annotations.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())));
        own.is_available |= patch["status"]["conditions"][0]["status"] == "False";
        own
    }

    #[test]
    fn says_what_flannel_says_in_one_patch_and_then_nothing() {
        let patch = announcement().patch(&own(), NOW).unwrap();
        let expected = json!({
            "metadata": {"annotations": {
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:01\"}",
                "flannel.alpha.coreos.com/public-ip": "192.168.1.2",
                "podwire.io/version": env!("CARGO_PKG_VERSION"),
                "podwire.io/mode": "adaptive",
            }},
            "status": {"conditions": [{
                "type": "NetworkUnavailable", "status": "False", "reason": "PodwireIsUp",
                "message": "podwire is running on this node", "lastTransitionTime": NOW, "lastHeartbeatTime": NOW,
            }]},
        });
        assert_eq!(patch, expected);
        assert_eq!(announcement().patch(&patched(&own(), &patch), NOW), None);
    }

    #[test]
    fn says_nothing_before_there_is_a_range() {
        assert_eq!(announcement().patch(&Object { pod_cidrs: Vec::new(), ..own() }, NOW), None);
    }

    #[test]
    fn what_somebody_changes_is_said_again_without_touching_the_condition() {
        let mut changed = patched(&own(), &announcement().patch(&own(), NOW).unwrap());
        changed.annotations.remove(flannel::MANAGED);
        let patch = announcement().patch(&changed, NOW).unwrap();
        assert!(patch.get("status").is_none());
        assert_eq!(announcement().patch(&patched(&changed, &patch), NOW), None);
    }

    #[test]
    fn both_families_are_said_and_overrides_are_honoured() {
        let both = Announcement { v6: Some(Ipv6Addr::LOCALHOST), ..announcement() };
        let mut node = own();
        node.annotations.insert(flannel::PUBLIC_IP_OVERWRITE.to_owned(), "203.0.113.7".to_owned());
        let annotations = both.patch(&node, NOW).unwrap()["metadata"]["annotations"].take();
        assert_eq!(annotations[flannel::PUBLIC_IP], "203.0.113.7");
        assert_eq!(annotations[flannel::PUBLIC_IPV6], "::1");
        assert_eq!(annotations[flannel::BACKEND_V6_DATA], annotations[flannel::BACKEND_DATA]);
        let v6 = Announcement { v4: None, ..both };
        assert!(v6.patch(&own(), NOW).unwrap()["metadata"]["annotations"].get(flannel::BACKEND_DATA).is_none());
    }
}
