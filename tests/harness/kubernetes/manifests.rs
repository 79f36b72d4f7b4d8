//! The manifests of `deploy/`, as objects.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Where `deploy/` is.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

fn read(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The objects that the kustomization has, in its order.
pub fn objects() -> Vec<Value> {
    let dir = deploy().join("kubernetes");
    let [kustomization] = &read(&dir.join("kustomization.yaml"))[..] else { panic!("one kustomization") };
    let resources = kustomization["resources"].as_array().expect("a list of resources");
    resources.iter().flat_map(|file| read(&dir.join(file.as_str().expect("a file")))).collect()
}

/// The account and its rights, with their namespace.
pub fn account() -> Vec<Value> {
    let dir = deploy().join("kubernetes");
    ["namespace.yaml", "rbac.yaml"].iter().flat_map(|file| read(&dir.join(file))).collect()
}

/// The rights that it needs besides in a cluster with Flannel.
pub fn flannel_role() -> Vec<Value> {
    read(&deploy().join("kubernetes/flannel.yaml"))
}

/// The only object of a kind.
pub fn object(kind: &str) -> Value {
    objects().into_iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}
