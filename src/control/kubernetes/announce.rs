//! What this node publishes: Flannel's annotations, ours, and the condition that the network is there, in one
//! strategic-merge patch of the Node's status.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::flannel::{self, Keys};
use super::object::Object;
use crate::config::Mode;
use crate::wire::{TunnelEnd, Vni};

/// This node as the others should know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    pub vni: Vni,
    /// Its end of the IPv4 tunnel.
    pub v4: Option<TunnelEnd>,
    /// Its end of the IPv6 tunnel.
    pub v6: Option<TunnelEnd>,
    pub mode: Mode,
}

/// What is not said of a node without the IPv6 tunnel.
const OF_V6: [&str; 3] = [flannel::V6.data, flannel::V6.address, flannel::IPV6_VTEP];

impl Announcement {
    /// The end of a tunnel that one family's keys tell of.
    pub fn end(&self, keys: Keys) -> Option<TunnelEnd> {
        if keys.data == flannel::V4.data { self.v4 } else { self.v6 }
    }

    /// The annotations, as the operator's overrides on the node will have them.
    fn annotations(&self, own: &Object) -> BTreeMap<&'static str, String> {
        let mut annotations = BTreeMap::from([
            (flannel::MANAGED, "true".to_owned()),
            (flannel::BACKEND_TYPE, flannel::VXLAN.to_owned()),
            (flannel::VERSION, env!("CARGO_PKG_VERSION").to_owned()),
            (flannel::MODE, self.mode.to_string()),
        ]);
        for keys in [flannel::V4, flannel::V6] {
            let Some(TunnelEnd { underlay, mac }) = self.end(keys) else { continue };
            let overwrite = own.annotation(keys.address_overwrite).filter(|text| !text.is_empty());
            annotations.insert(keys.data, flannel::backend_data(self.vni, mac));
            annotations.insert(keys.address, overwrite.map_or_else(|| underlay.to_string(), str::to_owned));
        }
        if self.v6.is_some() {
            annotations.insert(flannel::IPV6_VTEP, "true".to_owned());
        }
        annotations
    }

    /// Annotations that are true no more.
    fn untrue(&self, own: &Object) -> impl Iterator<Item = &'static str> {
        let is_there = |key: &&str| own.annotation(key).is_some();
        OF_V6.into_iter().filter(|_| self.v6.is_none()).filter(is_there)
    }

    /// The patch that makes the Node say all this, at a time in RFC 3339; `None` when it does. Nothing is said of a node
    /// without a pod range: Flannel's nodes would look at it once, fail, and not look again.
    pub fn patch(&self, own: &Object, now: &str) -> Option<Value> {
        if own.pod_cidrs.is_empty() {
            return None;
        }
        let wanted = self.annotations(own);
        let untrue: Vec<_> = self.untrue(own).collect();
        let is_annotated = wanted.iter().all(|(key, value)| own.annotation(key) == Some(value));
        if is_annotated && untrue.is_empty() && own.is_available {
            return None;
        }
        let mut patch = json!({ "metadata": { "annotations": wanted } });
        for key in untrue {
            patch["metadata"]["annotations"][key] = Value::Null;
        }
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

/// What the API makes of a patch of ours.
#[cfg(any(test, fuzzing))]
pub(super) fn patched(own: &Object, patch: &Value) -> Object {
    let mut own = own.clone();
    let annotations = patch["metadata"]["annotations"].as_object().expect("annotations");
    for (key, value) in annotations {
        match value.as_str() {
            Some(value) => own.annotations.insert(key.clone(), value.to_owned()),
            None => own.annotations.remove(key),
        };
    }
    own.is_available |= patch["status"]["conditions"][0]["status"] == "False";
    own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Mac;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn end(underlay: &str, last: u8) -> TunnelEnd {
        TunnelEnd { underlay: underlay.parse().unwrap(), mac: Mac([2, 0, 0, 0, 0, last]) }
    }

    fn announcement() -> Announcement {
        Announcement { vni: Vni::new(1).unwrap(), v4: Some(end("192.168.1.2", 1)), v6: None, mode: Mode::Adaptive }
    }

    fn own() -> Object {
        Object { name: "a".into(), pod_cidrs: vec!["10.244.1.0/24".into()], ..Object::default() }
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
        let both = Announcement { v6: Some(end("::1", 2)), ..announcement() };
        let mut node = own();
        node.annotations.insert(flannel::PUBLIC_IP_OVERWRITE.to_owned(), "203.0.113.7".to_owned());
        let annotations = both.patch(&node, NOW).unwrap()["metadata"]["annotations"].take();
        assert_eq!(annotations[flannel::PUBLIC_IP], "203.0.113.7");
        assert_eq!(annotations[flannel::PUBLIC_IPV6], "::1");
        assert_eq!(annotations[flannel::BACKEND_DATA], r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#);
        assert_eq!(annotations[flannel::BACKEND_V6_DATA], r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}"#);
        assert_eq!(annotations[flannel::IPV6_VTEP], "true");
        let v6 = Announcement { v4: None, ..both };
        assert!(v6.patch(&own(), NOW).unwrap()["metadata"]["annotations"].get(flannel::BACKEND_DATA).is_none());
    }

    #[test]
    fn an_ipv6_vtep_that_is_no_more_is_taken_back() {
        let both = Announcement { v6: Some(end("fd00::2", 1)), ..announcement() };
        let said = patched(&own(), &both.patch(&own(), NOW).unwrap());
        let patch = announcement().patch(&said, NOW).unwrap();
        let now = patched(&said, &patch);
        assert_eq!((now.annotation(flannel::PUBLIC_IPV6), now.annotation(flannel::IPV6_VTEP)), (None, None));
        assert!(now.annotation(flannel::BACKEND_V6_DATA).is_none() && now.annotation(flannel::PUBLIC_IP).is_some());
        assert_eq!(announcement().patch(&now, NOW), None);
    }
}
