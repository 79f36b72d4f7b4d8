//! What libcni remembers of an ADD until the DEL: a file `results/NETWORK-CONTAINER-IFNAME` (`cachedInfo` in
//! `libcni/api.go`). It is the only place outside of the runtime that names a container's network namespace.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::control::foreign_file;

/// The longest file that is read, in bytes: it holds a network configuration and a result.
const MOST_BYTES: u64 = 1 << 20;

/// Of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    pub netns: PathBuf,
    /// `namespace/pod` of Kubernetes.
    pub workload: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CachedInfo {
    /// Since libcni 1.2.
    netns: Option<PathBuf>,
    cni_args: Option<Vec<(String, String)>>,
    result: Option<CachedResult>,
}

#[derive(Deserialize)]
struct CachedResult {
    interfaces: Option<Vec<Interface>>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    sandbox: Option<PathBuf>,
}

/// What is remembered of an interface of a container in a network, or why that is not known.
pub fn read(cni_state: &Path, network: &str, container: &str, ifname: &str) -> Result<Cached, String> {
    let file = format!("{network}-{container}-{ifname}");
    if file.contains('/') {
        return Err("its name is not usable".to_owned());
    }
    let path = cni_state.join("results").join(file);
    let text = foreign_file::read(&path, MOST_BYTES)
        .map_err(|error| format!("its network namespace is unknown: cannot read {}: {error}", path.display()))?;
    understand(&text, ifname).map_err(|why| format!("its network namespace is unknown: {}: {why}", path.display()))
}

fn understand(text: &str, ifname: &str) -> Result<Cached, String> {
    let info: CachedInfo = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let is_usable = |netns: &PathBuf| !netns.as_os_str().is_empty();
    let interfaces = info.result.and_then(|result| result.interfaces).unwrap_or_default();
    let sandbox = interfaces.into_iter().find(|interface| interface.name == ifname).and_then(|found| found.sandbox);
    let netns = info.netns.filter(is_usable).or(sandbox).filter(is_usable);
    let args = info.cni_args.unwrap_or_default();
    let arg = |key: &str| {
        let found = args.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        found.filter(|value| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic()))
    };
    let workload = arg("K8S_POD_NAMESPACE").zip(arg("K8S_POD_NAME")).map(|(space, name)| format!("{space}/{name}"));
    Ok(Cached { netns: netns.ok_or("it names none")?, workload })
}

/// What holds of any file: it is refused with a reason, or names a network namespace.
#[cfg(fuzzing)]
pub fn fuzz(text: &str) {
    match understand(text, "eth0") {
        Ok(Cached { netns, .. }) => assert!(!netns.as_os_str().is_empty()),
        Err(why) => assert!(!why.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_found_where_old_and_new_runtimes_note_it() {
        let new = r#"{"kind":"cniCacheV1","containerId":"c","config":"e30=","ifName":"eth0","networkName":"cbr0",
            "netns":"/var/run/netns/a","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","web"],["K8S_POD_NAME","w-0"]],
            "result":{"interfaces":[{"name":"cni0"},{"name":"eth0","sandbox":"/var/run/netns/b"}]}}"#;
        let old =
            r#"{"result":{"interfaces":[{"name":"cni0","mac":"x"},{"name":"eth0","sandbox":"/var/run/netns/b"}]}}"#;
        let found = |netns: &str, workload: Option<&str>| {
            Ok(Cached { netns: netns.into(), workload: workload.map(str::to_owned) })
        };
        assert_eq!(understand(new, "eth0"), found("/var/run/netns/a", Some("web/w-0")));
        assert_eq!(understand(old, "eth0"), found("/var/run/netns/b", None));
        assert!(understand(old, "net1").unwrap_err().contains("names none"));
    }

    #[test]
    fn what_cannot_be_understood_is_named_and_nothing_outside_of_the_directory_is_read() {
        for text in ["", "[]", "{", r#"{"netns":7}"#, r#"{"result":{"interfaces":{}}}"#, r#"{"netns":""}"#] {
            assert!(understand(text, "eth0").is_err(), "{text}");
        }
        let dir = tempfile::tempdir().unwrap();
        let error = |container: &str| read(dir.path(), "cbr0", container, "eth0").unwrap_err();
        assert!(error("../../c").contains("not usable"));
        assert!(error("c").contains("cbr0-c-eth0"));
    }
}
