//! Calling the plugin as a container runtime does: environment, network configuration on standard input, and what comes
//! out.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Netns, Options, PodwireNode, Prefix, Switch, Wire, binary, is_root};

/// Every version whose results podwire speaks.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A call of a plugin.
#[derive(Clone, Debug)]
pub struct Call {
    env: BTreeMap<&'static str, OsString>,
    config: Vec<u8>,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Call {
    /// A call with nothing but a command and a configuration.
    pub fn bare(command: &str, config: impl AsRef<[u8]>) -> Self {
        Self { env: BTreeMap::from([("CNI_COMMAND", command.into())]), config: config.as_ref().to_vec() }
    }

    /// A call about `eth0` of a container.
    pub fn new(command: &str, container: &str, netns: &Path, config: &Value) -> Self {
        let call = Self::bare(command, config.to_string()).set("CNI_CONTAINERID", container);
        call.set("CNI_NETNS", netns).set("CNI_IFNAME", "eth0").set("CNI_PATH", "/usr/lib/cni")
    }

    pub fn set(mut self, variable: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(variable, value.as_ref().to_owned());
        self
    }

    pub fn unset(mut self, variable: &'static str) -> Self {
        self.env.remove(variable);
        self
    }

    /// Runs a plugin in a namespace.
    pub fn run(&self, program: impl AsRef<OsStr>, netns: &Netns) -> Outcome {
        Outcome::of(self.start(netns.command(program)))
    }

    /// Runs podwire here, where it has no daemon.
    pub fn run_here(&self) -> Outcome {
        Outcome::of(self.start(Command::new(binary())))
    }

    /// Starts a plugin and hands the configuration over.
    pub fn start(&self, mut command: Command) -> Child {
        command.env_clear().envs(&self.env).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter starts");
        match child.stdin.take().expect("a pipe").write_all(&self.config) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => panic!("{error}"),
            _ => {}
        }
        child
    }
}

impl Outcome {
    /// Of a plugin that was started.
    pub fn of(child: Child) -> Self {
        let output = child.wait_with_output().expect("our child");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// What was printed, which must be one JSON object; the call must have succeeded.
    #[track_caller]
    pub fn result(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The call must have succeeded and printed nothing.
    #[track_caller]
    pub fn is_silent_success(&self) {
        assert_eq!((self.code, self.stdout.as_str(), self.stderr.as_str()), (Some(0), "", ""), "{self:?}");
    }

    /// The code of a well-formed error object, and its text; the call must have failed.
    #[track_caller]
    pub fn error(&self) -> (u64, String) {
        assert_eq!(self.code, Some(1), "{self:?}");
        let object: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        let members = object.as_object().unwrap_or_else(|| panic!("{self:?}"));
        let known = ["cniVersion", "code", "msg", "details"];
        assert!(members.keys().all(|key| known.contains(&key.as_str())), "{self:?}");
        assert!(VERSIONS.iter().any(|version| object["cniVersion"] == *version), "{self:?}");
        let message = object["msg"].as_str().filter(|message| !message.is_empty());
        let message = message.unwrap_or_else(|| panic!("{self:?}"));
        let details = object.get("details").map_or("", |details| details.as_str().expect("a text"));
        assert!(self.stderr.starts_with("podwire: ") && !self.stderr.contains("panicked"), "{self:?}");
        (object["code"].as_u64().expect("a code"), format!("{message}: {details}"))
    }

    /// Fails with this code and a text that has `words` in it.
    #[track_caller]
    pub fn fails(&self, code: u64, words: &str) {
        let (found, text) = self.error();
        assert!(found == code && text.contains(words), "expected {code} `{words}`: {self:?}");
    }
}

/// A node with a daemon, without peers.
pub struct Lab {
    pub node: PodwireNode,
    pub prefix: Prefix,
}

impl Lab {
    /// `None` where it cannot be built.
    pub fn start(options: Options) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let prefix = Prefix::fresh();
        let switch = Switch::new(&prefix, Wire::default());
        let host = switch.host(&prefix, 'a', 1);
        let node = PodwireNode::start(&prefix, host, options, Vec::new());
        Some(Self { node, prefix })
    }

    /// The network configuration as a runtime hands it over.
    pub fn config(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "name": "net", "type": "podwire", "runtimeDir": self.node.runtime_dir() })
    }

    /// A call to podwire about a container whose namespace is that of `pod`.
    pub fn call(&self, command: &str, container: &str, pod: &Netns, config: &Value) -> Outcome {
        self.run(&Call::new(command, container, &pod.path(), config))
    }

    pub fn run(&self, call: &Call) -> Outcome {
        call.run(binary(), &self.node.host.netns)
    }

    /// The pods that the daemon knows.
    #[track_caller]
    pub fn pods(&self) -> Vec<Value> {
        serde_json::from_str(&self.node.cli("pods list --output json")).expect("a list")
    }

    /// Whether an address answers the node's first packet.
    pub fn answers(&self, address: &str) -> bool {
        self.node.host.netns.output(&format!("ping -n -c1 -W2 {address}")).status.success()
    }

    /// What is configured in a namespace, apart from what the kernel adds by itself some time later.
    pub fn state(netns: &Netns) -> String {
        let devices: Value = serde_json::from_str(&netns.run("ip -json link")).expect("ip prints JSON");
        let device = |device: &Value| format!("{} {} {}\n", device["ifname"], device["address"], device["mtu"]);
        let devices: String = devices.as_array().expect("a list").iter().map(device).collect();
        let lines = [
            "ip -o address show scope global",
            "ip route",
            "ip rule",
            "ip -6 route",
            "ip -6 rule",
            "ip neigh show nud permanent",
        ];
        let objects = lines.map(|line| netns.run(line)).join("--\n");
        let is_settled = |line: &&str| !line.starts_with("fe80::/64");
        devices + &objects.lines().filter(is_settled).collect::<Vec<_>>().join("\n")
    }
}

/// A configuration with more members.
pub fn with(config: &Value, members: &Value) -> Value {
    let mut config = config.clone();
    for (key, value) in members.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

/// The addresses of a result, without the length of the prefix.
pub fn addresses(result: &Value) -> Vec<String> {
    let address = |ip: &Value| ip["address"].as_str().expect("a text").split('/').next().expect("a part").to_owned();
    result["ips"].as_array().expect("a list").iter().map(address).collect()
}

/// Whether there is a reference plugin of this name; says so when not.
pub fn reference(name: &str) -> Option<std::path::PathBuf> {
    let path = Path::new("/usr/lib/cni").join(name);
    let found = fs::metadata(&path).is_ok();
    if !found {
        println!("skipped: needs {}", path.display());
    }
    found.then_some(path)
}
