//! What matters of a Node object. All else of it, most of its size, is skipped when it is read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::flannel;

/// The condition that a node's network is not there yet.
const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// What matters of a Node object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Wire", into = "Wire")]
pub struct Object {
    pub name: String,
    /// The server's time of its creation, RFC 3339 in UTC to the second: texts sort as times do.
    pub created: String,
    pub version: String,
    /// Flannel's and ours only.
    pub annotations: BTreeMap<String, String>,
    /// As the object has them.
    pub pod_cidrs: Vec<String>,
    /// The condition `NetworkUnavailable` is there and False.
    pub is_available: bool,
}

/// Nodes of one page of a list (`NodeList`, `ListMeta` of k8s.io/apimachinery).
#[derive(Debug, Deserialize)]
pub struct Page {
    pub metadata: PageMeta,
    /// Null when there are none.
    pub items: Option<Vec<Object>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageMeta {
    #[serde(default)]
    pub resource_version: String,
    /// Where the next page begins; empty or missing after the last one.
    #[serde(rename = "continue")]
    pub continue_token: Option<String>,
}

/// A Node object as it travels (`k8s.io/api/core/v1`).
#[derive(Serialize, Deserialize)]
struct Wire {
    metadata: Meta,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    name: String,
    creation_timestamp: Option<String>,
    resource_version: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Serialize, Deserialize)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Serialize, Deserialize)]
struct Status {
    conditions: Option<Vec<Condition>>,
}

#[derive(Serialize, Deserialize)]
struct Condition {
    r#type: String,
    status: String,
}

impl From<Wire> for Object {
    fn from(Wire { metadata, spec, status }: Wire) -> Self {
        let mut annotations = metadata.annotations.unwrap_or_default();
        annotations.retain(|key, _| key.starts_with(flannel::PREFIX) || key.starts_with(flannel::OWN_PREFIX));
        let many = |spec: &Spec| spec.pod_cidrs.clone().filter(|ranges| !ranges.is_empty());
        let one = |spec: &Spec| spec.pod_cidr.clone().filter(|range| !range.is_empty()).map(|range| vec![range]);
        let pod_cidrs = spec.and_then(|spec| many(&spec).or_else(|| one(&spec)));
        let conditions = status.and_then(|status| status.conditions).unwrap_or_default();
        let available = |condition: &Condition| condition.r#type == NETWORK_UNAVAILABLE && condition.status == "False";
        Self {
            name: metadata.name,
            created: metadata.creation_timestamp.unwrap_or_default(),
            version: metadata.resource_version.unwrap_or_default(),
            annotations,
            pod_cidrs: pod_cidrs.unwrap_or_default(),
            is_available: conditions.iter().any(available),
        }
    }
}

impl From<Object> for Wire {
    fn from(object: Object) -> Self {
        let Object { name, created, version, annotations, pod_cidrs, is_available } = object;
        let available = Condition { r#type: NETWORK_UNAVAILABLE.to_owned(), status: "False".to_owned() };
        Self {
            metadata: Meta {
                name,
                creation_timestamp: Some(created),
                resource_version: Some(version),
                annotations: Some(annotations),
            },
            spec: Some(Spec { pod_cidr: None, pod_cidrs: Some(pod_cidrs) }),
            status: is_available.then(|| Status { conditions: Some(vec![available]) }),
        }
    }
}

impl Object {
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }

    /// The same but for its version, which changes with things that do not matter.
    pub fn is_like(&self, other: &Self) -> bool {
        let Self { name, created, version: _, annotations, pod_cidrs, is_available } = self;
        (name, created, annotations, pod_cidrs, is_available)
            == (&other.name, &other.created, &other.annotations, &other.pod_cidrs, &other.is_available)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keeps_what_matters_of_a_node() {
        let node = json!({
            "kind": "Node",
            "metadata": {
                "name": "a", "creationTimestamp": "2026-01-02T03:04:05Z", "resourceVersion": "7",
                "annotations": {"flannel.alpha.coreos.com/backend-type": "vxlan", "podwire.io/mode": "busy", "other": "x"},
                "managedFields": [{"fieldsV1": {"f:status": {}}}],
            },
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00::/64"]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "False"}]},
        });
        let object: Object = serde_json::from_value(node).unwrap();
        assert_eq!((object.name.as_str(), object.version.as_str()), ("a", "7"));
        assert_eq!(object.annotations.len(), 2);
        assert_eq!(object.pod_cidrs, ["10.244.1.0/24", "fd00::/64"]);
        assert!(object.is_available);
    }

    #[test]
    fn a_node_may_lack_everything_but_its_name() {
        for node in [
            json!({"metadata": {"name": "a"}}),
            json!({"metadata": {"name": "a", "annotations": null}, "spec": {}, "status": {"conditions": null}}),
            json!({"metadata": {"name": "a"}, "spec": {"podCIDR": "", "podCIDRs": []}, "status": {}}),
        ] {
            let object: Object = serde_json::from_value(node).unwrap();
            assert_eq!(object, Object { name: "a".into(), ..Object::default() });
        }
        let old = json!({"metadata": {"name": "a"}, "spec": {"podCIDR": "10.1.0.0/24"}});
        assert_eq!(serde_json::from_value::<Object>(old).unwrap().pod_cidrs, ["10.1.0.0/24"]);
    }
}
