use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

/// What a server keeps, what it was asked, and what is wrong with it.
pub struct Store {
    version: u64,
    nodes: BTreeMap<String, Value>,
    /// What has changed, with the version that it came with; what is older than `oldest` is forgotten.
    log: Vec<(u64, Value)>,
    oldest: u64,
    pub net_conf: String,
    pub asked: Asked,
    /// When it was first asked for a page of the list.
    pub listed_at: Option<Instant>,
    /// Connections are closed as soon as they are made.
    pub down: bool,
    /// The only token that is good, if any is needed.
    pub token: Option<String>,
    /// The next requests for nodes are answered with these instead: a code, and after how many seconds to come again.
    pub refusals: Vec<(u16, Option<u64>)>,
    /// The next patches are answered with these codes instead.
    pub patch_refusals: Vec<u16>,
    /// A watch from a forgotten version is refused by the answer itself, not by an event in it.
    pub gone_by_status: bool,
    /// Before each page of a list.
    pub delay: Duration,
    /// The next event of a watch ends in its middle, and the watch with it.
    pub cut_next_event: bool,
}

/// How often the server was asked for what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Pages of lists.
    pub pages: usize,
    pub watches: usize,
    pub patches: usize,
    pub config_maps: usize,
    /// With a bad token.
    pub unauthorized: usize,
}

impl Asked {
    /// All requests that were not refused for their token.
    pub fn total(&self) -> usize {
        self.pages + self.watches + self.patches + self.config_maps
    }
}

/// Nothing of the kind is there any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

impl Store {
    pub fn new(net_conf: &str) -> Self {
        Self {
            version: 1,
            nodes: BTreeMap::new(),
            log: Vec::new(),
            oldest: 1,
            net_conf: net_conf.to_owned(),
            asked: Asked::default(),
            listed_at: None,
            down: false,
            token: None,
            refusals: Vec::new(),
            patch_refusals: Vec::new(),
            gone_by_status: false,
            delay: Duration::ZERO,
            cut_next_event: false,
        }
    }

    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn node(&self, name: &str) -> Option<&Value> {
        self.nodes.get(name)
    }

    /// Makes a node, created at that second, with these pod ranges.
    pub fn create(&mut self, name: &str, second: u8, pod_cidrs: &[String]) {
        let mut spec = Map::new();
        if let Some(first) = pod_cidrs.first() {
            spec.extend([("podCIDR".to_owned(), json!(first)), ("podCIDRs".to_owned(), json!(pod_cidrs))]);
        }
        let node = json!({
            "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
                "annotations": {"node.alpha.kubernetes.io/ttl": "0"}},
            "spec": spec,
            "status": {"conditions": [
                {"type": "Ready", "status": "True"},
                {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"},
            ]},
        });
        self.put(name, node, "ADDED");
    }

    /// Changes a node as a controller would.
    pub fn edit(&mut self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut node = self.nodes.get(name).unwrap_or_else(|| panic!("no node {name}")).clone();
        edit(&mut node);
        self.put(name, node, "MODIFIED");
    }

    /// Sets annotations of a node; null removes one.
    pub fn annotate(&mut self, name: &str, annotations: &Value) {
        self.edit(name, |node| merge(&mut node["metadata"]["annotations"], annotations));
    }

    pub fn delete(&mut self, name: &str) {
        let mut node = self.nodes.remove(name).unwrap_or_else(|| panic!("no node {name}"));
        self.version += 1;
        node["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log.push((self.version, json!({"type": "DELETED", "object": node})));
    }

    /// Forgets all changes so far: who has not heard of them must list again.
    pub fn compact(&mut self) {
        self.version += 1;
        self.oldest = self.version;
        self.log.clear();
    }

    fn put(&mut self, name: &str, mut node: Value, kind: &str) {
        self.version += 1;
        node["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log.push((self.version, json!({"type": kind, "object": node.clone()})));
        self.nodes.insert(name.to_owned(), node);
    }

    /// A page of the list: at most `limit` nodes after the one that the token names.
    pub fn page(&self, limit: usize, token: Option<&str>) -> Result<Value, Gone> {
        let (version, after) = match token {
            Some(token) => token.split_once(':').ok_or(Gone)?,
            None => ("", ""),
        };
        let version = version.parse().unwrap_or(self.version);
        if version < self.oldest {
            return Err(Gone);
        }
        let rest: Vec<_> = self.nodes.iter().filter(|(name, _)| token.is_none() || name.as_str() > after).collect();
        let page: Vec<&Value> = rest.iter().take(limit).map(|(_, node)| *node).collect();
        let last = rest.get(limit.wrapping_sub(1)).filter(|_| rest.len() > limit);
        let next = last.map_or(String::new(), |(name, _)| format!("{version}:{name}"));
        let metadata = json!({"resourceVersion": version.to_string(), "continue": next});
        Ok(json!({"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": page}))
    }

    /// The first change after a version.
    pub fn after(&self, version: u64) -> Result<Option<(u64, Value)>, Gone> {
        if version < self.oldest {
            return Err(Gone);
        }
        let next = self.log.partition_point(|(changed, _)| *changed <= version);
        Ok(self.log.get(next).cloned())
    }

    /// A strategic-merge patch of a node's status: annotations and conditions, these by their type. The rest of the
    /// object is not part of that subresource.
    pub fn patch_status(&mut self, name: &str, patch: &Value) -> Option<Value> {
        self.nodes.get(name)?;
        self.edit(name, |node| {
            if let Some(annotations) = patch.pointer("/metadata/annotations") {
                merge(&mut node["metadata"]["annotations"], annotations);
            }
            for condition in patch.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten() {
                let conditions = node["status"]["conditions"].as_array_mut().expect("conditions");
                match conditions.iter_mut().find(|known| known["type"] == condition["type"]) {
                    Some(known) => merge(known, condition),
                    None => conditions.push(condition.clone()),
                }
            }
        });
        self.node(name).cloned()
    }
}

/// Puts the fields of `patch` into an object; null removes one.
fn merge(object: &mut Value, patch: &Value) {
    let object = object.as_object_mut().expect("an object");
    for (key, value) in patch.as_object().expect("an object") {
        if value.is_null() {
            object.remove(key);
        } else {
            object.insert(key.clone(), value.clone());
        }
    }
}
