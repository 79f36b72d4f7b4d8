//! The side of CNI that a container runtime plays: it starts the plugins of a list one after the other, with the verb
//! in their environment and a configuration on their standard input, as libcni does (CNI specification 1.1.0,
//! sections 2 to 4). A plugin starts in the network namespace of the thread that asks.

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::netns::Prefix;
use super::podwire_node::binary;

/// A runtime with one network.
#[derive(Debug)]
pub struct CniRuntime {
    /// Where plugins are looked for, in order.
    dirs: Vec<PathBuf>,
    /// `name`, `cniVersion` and `plugins`, as in a `.conflist` file.
    list: Value,
    /// What ADD answered last, by container and interface.
    results: Mutex<HashMap<(String, String), Value>>,
}

/// One interface of one container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attachment {
    pub container: String,
    /// `None` when the namespace is gone, or not known any more.
    pub netns: Option<PathBuf>,
    pub ifname: String,
    /// `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`.
    pub args: String,
    /// What the runtime has for plugins that declare the capability, by its name.
    pub capabilities: Map<String, Value>,
}

/// The error object of a plugin (section 5, "Error").
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniError {
    pub cni_version: String,
    pub code: u32,
    pub msg: String,
    #[serde(default)]
    pub details: String,
}

/// How a chain of plugins ends when it does not succeed.
#[derive(Debug)]
enum Failure {
    Refused(CniError),
    Killed,
}

impl CniRuntime {
    /// Panics unless the list is one.
    pub fn new(dirs: Vec<PathBuf>, list: Value) -> Self {
        for key in ["name", "cniVersion"] {
            assert!(list[key].is_string(), "no {key} in {list}");
        }
        assert!(list["plugins"].as_array().is_some_and(|plugins| !plugins.is_empty()), "no plugins in {list}");
        Self { dirs, list, results: Mutex::default() }
    }

    /// Adds the container to the network; returns the result of the last plugin.
    pub fn add(&self, attachment: &Attachment) -> Result<Value, CniError> {
        self.try_add(attachment, None).map_err(Failure::refusal)
    }

    /// As [`Self::add`], but the plugin that runs after `patience` is killed. `None` if one was.
    pub fn add_within(&self, attachment: &Attachment, patience: Duration) -> Option<Result<Value, CniError>> {
        Failure::outcome(self.try_add(attachment, Some(patience)))
    }

    /// Removes the container from the network: the last plugin first.
    pub fn del(&self, attachment: &Attachment) -> Result<(), CniError> {
        self.try_del(attachment, None).map_err(Failure::refusal)
    }

    /// As [`Self::del`], but the plugin that runs after `patience` is killed. `None` if one was.
    pub fn del_within(&self, attachment: &Attachment, patience: Duration) -> Option<Result<(), CniError>> {
        Failure::outcome(self.try_del(attachment, Some(patience)))
    }

    /// Whether all is as ADD left it.
    pub fn check(&self, attachment: &Attachment) -> Result<(), CniError> {
        let previous = self.results().get(&key(attachment)).cloned();
        for plugin in self.plugins() {
            let configuration = self.configuration(plugin, attachment, previous.as_ref());
            self.exec("CHECK", plugin, &environment(attachment), &configuration, None).map_err(Failure::refusal)?;
        }
        Ok(())
    }

    /// Tells the plugins which attachments are still wanted. Unlike libcni's, it does not remove those that it remembers
    /// itself: the plugins must.
    pub fn gc(&self, wanted: &[&Attachment]) -> Result<(), CniError> {
        let is_wanted = |at: &(String, String)| wanted.iter().any(|attachment| key(attachment) == *at);
        self.results().retain(|at, _| is_wanted(at));
        let valid = wanted.iter().map(|at| json!({ "containerID": at.container, "ifname": at.ifname }));
        self.tell("GC", &[("cni.dev/valid-attachments", valid.collect())])
    }

    /// Whether the plugins could add a container now.
    pub fn status(&self) -> Result<(), CniError> {
        self.tell("STATUS", &[])
    }

    /// A verb that is about the network and none of its containers.
    fn tell(&self, verb: &str, keys: &[(&str, Value)]) -> Result<(), CniError> {
        for plugin in self.plugins() {
            let mut configuration = self.own_configuration(plugin);
            configuration.extend(keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
            self.exec(verb, plugin, &[], &configuration, None).map_err(Failure::refusal)?;
        }
        Ok(())
    }

    fn try_add(&self, attachment: &Attachment, patience: Option<Duration>) -> Result<Value, Failure> {
        let mut result = None;
        for plugin in self.plugins() {
            let configuration = self.configuration(plugin, attachment, result.as_ref());
            result = self.exec("ADD", plugin, &environment(attachment), &configuration, patience)?;
        }
        let result = result.expect("the last plugin prints a result");
        self.results().insert(key(attachment), result.clone());
        Ok(result)
    }

    fn try_del(&self, attachment: &Attachment, patience: Option<Duration>) -> Result<(), Failure> {
        let previous = self.results().get(&key(attachment)).cloned();
        for plugin in self.plugins().iter().rev() {
            let configuration = self.configuration(plugin, attachment, previous.as_ref());
            self.exec("DEL", plugin, &environment(attachment), &configuration, patience)?;
        }
        self.results().remove(&key(attachment));
        Ok(())
    }

    /// Starts one plugin and waits for it. Success without output is `None`.
    fn exec(
        &self,
        verb: &str,
        plugin: &Value,
        environment: &[(&str, OsString)],
        configuration: &Map<String, Value>,
        patience: Option<Duration>,
    ) -> Result<Option<Value>, Failure> {
        let mut command = Command::new(self.find(plugin));
        let inherited = env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("CNI_"));
        inherited.for_each(|name| {
            command.env_remove(name);
        });
        command.env("CNI_COMMAND", verb).env("CNI_PATH", env::join_paths(&self.dirs).expect("no colon in a directory"));
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", command.get_program().display()));
        let input = serde_json::to_vec(configuration).expect("JSON");
        // A plugin that has ended, or does not want it all, says so itself.
        let _unread = child.stdin.take().expect("a pipe").write_all(&input);
        read(verb, wait(child, patience))
    }

    fn find(&self, plugin: &Value) -> PathBuf {
        let name = plugin["type"].as_str().expect("a plugin has a type");
        let found = self.dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
        found.unwrap_or_else(|| panic!("there is no plugin {name} in {:?}", self.dirs))
    }

    /// A plugin's part of the list, with what the runtime adds: the network's name and version, the result so far, and
    /// what of the capabilities the plugin has declared.
    fn configuration(&self, plugin: &Value, attachment: &Attachment, previous: Option<&Value>) -> Map<String, Value> {
        let mut configuration = self.own_configuration(plugin);
        if let Some(previous) = previous {
            configuration.insert("prevResult".into(), previous.clone());
        }
        let mut runtime = attachment.capabilities.clone();
        runtime.retain(|name, _| plugin["capabilities"][name] == true);
        if !runtime.is_empty() {
            configuration.insert("runtimeConfig".into(), runtime.into());
        }
        configuration
    }

    fn own_configuration(&self, plugin: &Value) -> Map<String, Value> {
        let mut configuration = plugin.as_object().expect("a plugin is an object").clone();
        for key in ["name", "cniVersion"] {
            configuration.insert(key.into(), self.list[key].clone());
        }
        configuration
    }

    fn plugins(&self) -> &[Value] {
        self.list["plugins"].as_array().expect("checked by new")
    }

    fn results(&self) -> MutexGuard<'_, HashMap<(String, String), Value>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Failure {
    /// Of a chain that nobody kills.
    fn refusal(self) -> CniError {
        match self {
            Self::Refused(error) => error,
            Self::Killed => panic!("a plugin was killed"),
        }
    }

    fn outcome<T>(result: Result<T, Self>) -> Option<Result<T, CniError>> {
        match result {
            Err(Self::Killed) => None,
            other => Some(other.map_err(Self::refusal)),
        }
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {}) {}", self.msg, self.code, self.details)
    }
}

fn key(attachment: &Attachment) -> (String, String) {
    (attachment.container.clone(), attachment.ifname.clone())
}

fn environment(attachment: &Attachment) -> [(&'static str, OsString); 4] {
    [
        ("CNI_CONTAINERID", attachment.container.clone().into()),
        ("CNI_NETNS", attachment.netns.clone().unwrap_or_default().into()),
        ("CNI_IFNAME", attachment.ifname.clone().into()),
        ("CNI_ARGS", attachment.args.clone().into()),
    ]
}

fn wait(mut child: Child, patience: Option<Duration>) -> Output {
    if let Some(patience) = patience {
        thread::sleep(patience);
        child.kill().expect("our child");
    }
    child.wait_with_output().expect("our child")
}

/// What a plugin that has ended says.
fn read(verb: &str, output: Output) -> Result<Option<Value>, Failure> {
    let Output { status, stdout, stderr } = output;
    if status.signal() == Some(libc::SIGKILL) {
        return Err(Failure::Killed);
    }
    let said = || format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    if status.success() {
        let result = (!stdout.is_empty()).then(|| serde_json::from_slice(&stdout));
        return result.transpose().map_or_else(|e| panic!("{verb} succeeds with no JSON: {e}: {}", said()), Ok);
    }
    let error = serde_json::from_slice(&stdout);
    Err(Failure::Refused(
        error.unwrap_or_else(|e| panic!("{verb} fails ({status}) without an error object: {e}: {}", said())),
    ))
}

/// A directory of plugins with podwire in it, as `podwire cni install` makes it.
pub fn cni_dir(prefix: &Prefix) -> PathBuf {
    let dir = prefix.dir().join("cni");
    fs::create_dir_all(&dir).expect("a directory for plugins");
    let plugin = dir.join("podwire");
    if !plugin.exists() {
        symlink(binary(), plugin).expect("a link to the binary");
    }
    dir
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with a plugin of each name that prints its environment and input as a result, or fails when told so.
    fn plugins(dir: &Path, names: &[&str]) -> CniRuntime {
        let script = r#"#!/bin/sh
input=$(cat)
printf '%s %s %s %s %s\n' "$CNI_COMMAND" "${0##*/}" "$CNI_CONTAINERID" "$CNI_NETNS" "$input" >>"${0%/*}/log"
case $input in *'"fail"'*) printf '{"cniVersion":"1.1.0","code":7,"msg":"no"}'; exit 1 ;; esac
[ "$CNI_COMMAND" != ADD ] || printf '{"from":"%s"}' "${0##*/}"
"#;
        for name in names {
            let path = dir.join(name);
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let plugins: Vec<_> =
            names.iter().map(|name| json!({ "type": name, "capabilities": { "ips": true } })).collect();
        CniRuntime::new(vec![dir.into()], json!({ "name": "n", "cniVersion": "1.1.0", "plugins": plugins }))
    }

    #[test]
    fn results_go_down_the_chain_and_back_up() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = plugins(dir.path(), &["one", "two"]);
        let capabilities = json!({ "ips": ["10.0.0.1"], "mac": "02:00:00:00:00:01" });
        let attachment = Attachment {
            container: "c".into(),
            netns: Some("/run/netns/c".into()),
            ifname: "eth0".into(),
            capabilities: capabilities.as_object().unwrap().clone(),
            ..Attachment::default()
        };
        assert_eq!(runtime.add(&attachment), Ok(json!({ "from": "two" })));
        assert_eq!(runtime.del(&Attachment { netns: None, ..attachment }), Ok(()));
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        let line = |verb: &str, name: &str, netns: &str, previous: Value| {
            let mut input = json!({
                "capabilities": { "ips": true },
                "cniVersion": "1.1.0",
                "name": "n",
                "runtimeConfig": { "ips": ["10.0.0.1"] },
                "type": name,
            });
            if !previous.is_null() {
                input["prevResult"] = previous;
            }
            format!("{verb} {name} c {netns} {input}")
        };
        let from = |name: &str| json!({ "from": name });
        let expected = [
            line("ADD", "one", "/run/netns/c", Value::Null),
            line("ADD", "two", "/run/netns/c", from("one")),
            line("DEL", "two", "", from("two")),
            line("DEL", "one", "", from("two")),
        ];
        assert_eq!(log.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_refusal_is_an_error_and_a_kill_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = plugins(dir.path(), &["one"]);
        let attachment = Attachment { container: "fail".into(), args: r#"A="fail""#.into(), ..Attachment::default() };
        assert!(runtime.add(&attachment).is_ok(), "nothing in the configuration tells it to fail");
        let told = Attachment { capabilities: json!({ "ips": ["fail"] }).as_object().unwrap().clone(), ..attachment };
        let error = CniError { cni_version: "1.1.0".into(), code: 7, msg: "no".into(), details: String::new() };
        assert_eq!(runtime.add(&told), Err(error));
        assert_eq!(runtime.add_within(&told, Duration::ZERO), None);
    }
}
