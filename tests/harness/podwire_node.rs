//! A node that runs podwire: the binary itself, started in the node's namespace with a generated configuration and a
//! runtime directory of its own, and driven through its command line.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{self, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::Duration;

use podwire::control::api::{DataplaneState, Path, Stats, Status};
use podwire::control::view::{VerdictRow, WorkerStatus};
use podwire::steer::{Program, Verdict};

use super::netns::Prefix;
use super::site::{Host, Peer, Pod, pod_cidrs};
use super::thread_time;
use super::traffic::wait_until;

/// How long a daemon may take to do what it was asked.
const PATIENCE: Duration = Duration::from_secs(10);

/// And how much longer for each peer.
const PER_PEER: Duration = Duration::from_millis(10);

/// The name of the kernel's VXLAN device.
pub const VXLAN_DEVICE: &str = "podwire.1";

/// And of that of the second VTEP.
pub const SECOND_DEVICE: &str = "podwire-v6.1";

/// What the tests vary in a node's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    pub mode: &'static str,
    pub xdp: &'static str,
    pub workers: usize,
    /// Whether pods leave the cluster with the node's address.
    pub masquerade: bool,
    pub known_vteps_only: bool,
    /// Who carries TCP connections that move much.
    pub bulk: &'static str,
    /// Packets a second that wake a worker; 0: each does.
    pub wake_pps: u32,
    /// More keys of the section `vxlan`.
    pub vxlan: &'static str,
    /// Whether it serves metrics, at [`PodwireNode::METRICS`] and on a Unix socket.
    pub metrics: bool,
    /// More keys of the section `dataplane`, and more sections of the file.
    pub sections: &'static str,
}

impl Options {
    /// The data plane with one worker that carries all that it can, as most tests are about.
    pub const ADAPTIVE: Self = Self {
        mode: "adaptive",
        xdp: "auto",
        workers: 1,
        masquerade: false,
        known_vteps_only: true,
        bulk: "workers",
        wake_pps: 0,
        vxlan: "",
        metrics: false,
        sections: "",
    };
    /// The data plane with a worker that never sleeps.
    pub const BUSY: Self = Self { mode: "busy", ..Self::ADAPTIVE };
    /// The data plane as it comes.
    pub const DEFAULT: Self = Self { bulk: "auto", wake_pps: 20_000, ..Self::ADAPTIVE };
    /// The kernel receives, and the workers take datagrams.
    pub const WITHOUT_XDP: Self = Self { xdp: "off", bulk: "auto", ..Self::ADAPTIVE };
    /// The kernel path alone.
    pub const KERNEL: Self = Self { mode: "kernel", ..Self::ADAPTIVE };

    pub fn is_kernel(&self) -> bool {
        self.mode == "kernel"
    }
}

pub struct PodwireNode {
    pub host: Host,
    pub pods: Vec<Pod>,
    options: Options,
    peers: Vec<Peer>,
    /// The MACs of its VTEPs; one that follows from the underlay address when `None`.
    vtep_macs: [Option<String>; 2],
    /// Whether ranges and peers come from the Kubernetes API, by [`PodwireNode::kubeconfig`], instead of the file.
    asks_api: bool,
    dir: PathBuf,
    daemon: Option<Child>,
    lasting: bool,
}

impl PodwireNode {
    /// Where it serves metrics, in its namespace.
    pub const METRICS: &str = "127.0.0.1:9477";

    /// Starts the daemon and waits until it carries packets for all `peers` as its mode says.
    pub fn start(prefix: &Prefix, host: Host, options: Options, peers: Vec<Peer>) -> Self {
        let mut node = Self::prepare(prefix, host, options, peers, [None, None]);
        node.launch();
        node
    }

    /// Writes the configuration of a node, which is yet to be launched.
    pub fn prepare(
        prefix: &Prefix,
        host: Host,
        options: Options,
        peers: Vec<Peer>,
        vtep_macs: [Option<String>; 2],
    ) -> Self {
        let dir = prefix.dir().join(host.name());
        fs::create_dir_all(&dir).expect("a directory for the node");
        let (pods, asks_api) = (Vec::new(), false);
        let node = Self { host, pods, options, peers, vtep_macs, asks_api, dir, daemon: None, lasting: false };
        node.write_config();
        node
    }

    /// Starts a daemon that learns of its peers from the Kubernetes API, and does not wait for anything.
    pub fn begin(prefix: &Prefix, host: Host, options: Options, kubeconfig: &str) -> Self {
        let dir = prefix.dir().join(host.name());
        fs::create_dir_all(&dir).expect("a directory for the node");
        let (pods, peers) = (Vec::new(), Vec::new());
        let vtep_macs = [None, None];
        let mut node =
            Self { host, pods, options, peers, vtep_macs, asks_api: true, dir, daemon: None, lasting: false };
        fs::write(node.kubeconfig(), kubeconfig).expect("write the kubeconfig");
        node.write_config();
        node.spawn();
        node
    }

    /// Waits until it has heard of these peers and carries packets for them as its mode says.
    #[track_caller]
    pub fn await_peers(&mut self, peers: Vec<Peer>) {
        self.peers = peers;
        self.wait_ready();
    }

    /// Starts the daemon again after it ended.
    pub fn launch(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    /// Starts the daemon again, with other options.
    pub fn launch_with(&mut self, options: Options) {
        self.options = options;
        self.write_config();
        self.launch();
    }

    /// Starts the daemon and does not wait for anything.
    pub fn spawn(&mut self) {
        self.spawn_by(&[], &[]);
    }

    /// Starts the daemon again, by a command before its own, and with more arguments.
    pub fn launch_by(&mut self, before: &[&str], more: &[&str]) {
        self.spawn_by(before, more);
        self.wait_ready();
    }

    fn spawn_by(&mut self, before: &[&str], more: &[&str]) {
        let log = File::options().create(true).append(true).open(self.log()).expect("a log file");
        let mut command = self.host.netns.command("env");
        command.args(before).arg(binary());
        command.arg("run").arg("--config").arg(self.config()).arg("--runtime-dir").arg(self.runtime_dir()).args(more);
        command.env("PODWIRE_FAULTS", "1");
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.daemon = Some(command.spawn().expect("nsenter starts"));
    }

    /// Waits until peers are served by the path that the mode promises.
    #[track_caller]
    fn wait_ready(&mut self) {
        let wanted = if self.options.is_kernel() { DataplaneState::Kernel } else { DataplaneState::Running };
        let mut last = String::from("no answer");
        let peers = self.peers.len() + self.options.sections.matches("[[peers]]").count();
        let patience = PATIENCE + PER_PEER * u32::try_from(peers).expect("a few thousand");
        let ready = wait_until(patience, || {
            assert!(self.is_running(), "the daemon of {} ended\n{}", self.host.name(), self.log_text());
            let Ok(status) = self.try_status().map_err(|e| last = e) else { return false };
            let fast = status.peers.iter().all(|peer| peer.path == Path::Fast);
            last = format!("{:?} {:?}", status.dataplane.state, status.peers);
            status.dataplane.state == wanted && status.peers.len() == peers && (self.options.is_kernel() || fast)
        });
        assert!(ready, "{} is not ready: {last}\n{}", self.host.name(), self.log_text());
    }

    fn is_running(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|daemon| matches!(daemon.try_wait(), Ok(None)))
    }

    pub fn options(&self) -> Options {
        self.options
    }

    /// The daemon's process; it must run.
    pub fn daemon(&self) -> &Child {
        self.daemon.as_ref().expect("the daemon was started")
    }

    /// Ends the daemon by SIGTERM; it must end with code 0 in time.
    #[track_caller]
    pub fn stop(&mut self) {
        super::signal(self.daemon(), libc::SIGTERM);
        self.wait_for_end();
    }

    /// Removes the data plane, and with it the daemon.
    #[track_caller]
    pub fn uninstall_data_plane(&mut self) {
        self.cli("uninstall --keep-kernel");
        self.wait_for_end();
    }

    #[track_caller]
    fn wait_for_end(&mut self) {
        let mut code = None;
        let daemon = self.daemon.as_mut().expect("the daemon was started");
        let ended = wait_until(PATIENCE, || {
            code = daemon.try_wait().expect("our child").map(|status| status.code());
            code.is_some()
        });
        assert!(ended && code == Some(Some(0)), "the daemon ended with {code:?}");
        self.daemon = None;
    }

    /// Waits for the daemon to end by itself, and tells how it did.
    #[track_caller]
    pub fn wait_for_death(&mut self, limit: Duration) -> ExitStatus {
        let mut daemon = self.daemon.take().expect("the daemon was started");
        assert!(wait_until(limit, || !matches!(daemon.try_wait(), Ok(None))), "it goes on");
        daemon.wait().expect("our child")
    }

    /// Ends the daemon as a crash would.
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon was started");
        daemon.kill().expect("our child");
        daemon.wait().expect("our child");
    }

    /// Ends the daemon as a failed assertion of its own would.
    pub fn abort(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon was started");
        super::signal(&daemon, libc::SIGABRT);
        daemon.wait().expect("our child");
    }

    /// Leaves the daemon running when this value is dropped.
    pub fn keep(&mut self) {
        self.lasting = true;
    }

    /// Wires a new pod through the daemon.
    #[track_caller]
    pub fn add_pod(&mut self, prefix: &Prefix, name: &str) {
        let netns = prefix.netns(name);
        self.cli(&format!("pods attach --netns {} --ifname eth0 --name {name}", netns.path().display()));
        self.pods.push(Pod::of(name.to_owned(), netns));
    }

    /// Takes the network of the pod that was added last away; its namespace stays.
    #[track_caller]
    pub fn remove_pod(&mut self) -> Pod {
        let pod = self.pods.pop().expect("a pod");
        self.cli(&format!("pods detach --name {}", pod.name));
        pod
    }

    /// Changes the list of peers in the file and waits until the daemon has taken it.
    #[track_caller]
    pub fn set_peers(&mut self, peers: Vec<Peer>) {
        self.peers = peers;
        self.reconfigure();
    }

    /// Changes the options in the file, if they differ, and waits until the daemon has taken them.
    #[track_caller]
    pub fn set_options(&mut self, options: Options) {
        if options != self.options {
            self.options = options;
            self.reconfigure();
        }
    }

    #[track_caller]
    fn reconfigure(&mut self) {
        let before = self.status().config.generation;
        self.write_config();
        let taken = wait_until(PATIENCE, || self.status().config.generation > before);
        assert!(taken, "the change was not taken: {:?}", self.status().config);
        self.wait_ready();
    }

    /// Replaces the file in one step, as editors and config maps do.
    fn write_config(&self) {
        let next = self.dir.join("next.toml");
        fs::write(&next, self.config_text()).expect("write the configuration");
        fs::rename(next, self.config()).expect("rename the configuration");
    }

    fn config_text(&self) -> String {
        if self.asks_api { self.kubernetes_config() } else { self.file_config() }
    }

    fn kubernetes_config(&self) -> String {
        let Options { mode, xdp, bulk, wake_pps, sections, metrics, .. } = self.options;
        let [kubeconfig, subnet_env, cache] = [self.kubeconfig(), self.subnet_env(), self.cache()];
        format!(
            r#"[node]
name = "{}"
uplink = "{}"

[kubernetes]
kubeconfig = "{}"
subnet_env = "{}"
cache = "{}"

[dataplane]
mode = "{mode}"
cores = [{}]
xdp = "{xdp}"
bulk = "{bulk}"
wake_pps = {wake_pps}
{sections}
{}"#,
            self.host.name(),
            self.host.uplink,
            kubeconfig.display(),
            subnet_env.display(),
            cache.display(),
            self.host.core(0),
            metrics_section(metrics),
        )
    }

    /// Where it keeps the nodes of the Kubernetes API.
    pub fn cache(&self) -> PathBuf {
        self.dir.join("state/nodes.json")
    }

    /// How it reaches the API server.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// Where it writes Flannel's `subnet.env`.
    pub fn subnet_env(&self) -> PathBuf {
        self.dir.join("flannel/subnet.env")
    }

    fn file_config(&self) -> String {
        let Host { index, uplink, underlay, .. } = &self.host;
        let Options { mode, xdp, workers, masquerade, known_vteps_only, bulk, wake_pps, vxlan, metrics, sections } =
            self.options;
        let [_, v6] = self.host.addresses();
        let [vtep_mac, vtep_mac6] = self.vtep_macs.clone();
        let underlay6 = self.host.wire.dual.then(|| v6.to_string());
        let ends = [("vtep_mac", vtep_mac), ("underlay6", underlay6), ("vtep_mac6", vtep_mac6)];
        let ends: Vec<_> =
            ends.into_iter().filter_map(|(key, value)| Some(format!("{key} = \"{}\"", value?))).collect();
        let ends = ends.join("\n");
        let cores: Vec<_> = (0..workers).map(|worker| self.host.core(worker)).collect();
        let mut text = format!(
            r#"[node]
name = "{}"
uplink = "{uplink}"
underlay = "{underlay}"
pod_cidrs = {:?}
{ends}

[cluster]
pod_cidrs = ["10.244.0.0/16", "fd00:244::/32"]
masquerade = {masquerade}

[vxlan]
vni = 1
port = 8472
device = "{VXLAN_DEVICE}"
{vxlan}

[dataplane]
mode = "{mode}"
cores = {cores:?}
xdp = "{xdp}"
zero_copy = "auto"
known_vteps_only = {known_vteps_only}
bulk = "{bulk}"
wake_pps = {wake_pps}
{sections}"#,
            self.host.name(),
            pod_cidrs(*index),
        );
        text += &metrics_section(metrics);
        for Peer { name, index, underlay, vtep_mac, underlay6, vtep_mac6, addresses } in &self.peers {
            let cidrs = pod_cidrs(*index);
            write!(text, "\n[[peers]]\nname = \"{name}\"\nunderlay = \"{underlay}\"\npod_cidrs = {cidrs:?}\n")
                .expect("a string");
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            writeln!(text, "addresses = {addresses:?}").expect("a string");
            let underlay6 = underlay6.as_ref().map(ToString::to_string);
            let ends = [("vtep_mac", vtep_mac), ("underlay6", &underlay6), ("vtep_mac6", vtep_mac6)];
            for (key, value) in ends.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
                writeln!(text, "{key} = \"{value}\"").expect("a string");
            }
        }
        text
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("podwire.toml")
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Where its data plane is pinned.
    pub fn pins(&self) -> PathBuf {
        path::Path::new("/sys/fs/bpf/podwire").join(self.host.netns.cookie().to_string())
    }

    /// How many pods have their program.
    pub fn steered(&self) -> usize {
        let links = fs::read_dir(self.pins().join("links")).into_iter().flatten().flatten();
        links.filter(|entry| entry.file_name().to_string_lossy().starts_with("pod_")).count()
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// How many frames got a verdict.
    pub fn verdict(&self, program: Program, verdict: Verdict) -> u64 {
        let is_it = |row: &&VerdictRow| (&*row.program, &*row.verdict) == (program.label(), verdict.label());
        self.stats().verdicts.iter().find(is_it).map_or(0, |row| row.packets)
    }

    /// What the daemon has logged so far.
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// A verb of the command line, to be run against this node's daemon.
    pub fn command(&self, line: &str) -> Command {
        let mut command = self.host.netns.command(binary());
        command.args(line.split_whitespace()).arg("--runtime-dir").arg(self.runtime_dir());
        command
    }

    /// Runs a verb of the command line, whatever comes of it.
    pub fn try_cli(&self, line: &str) -> Output {
        self.command(line).stderr(Stdio::piped()).output().expect("nsenter starts")
    }

    /// Runs a verb of the command line, which must succeed; returns what it printed.
    #[track_caller]
    pub fn cli(&self, line: &str) -> String {
        let output = self.try_cli(line);
        assert!(output.status.success(), "podwire {line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `podwire status`.
    #[track_caller]
    pub fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|e| panic!("status of {}: {e}", self.host.name()))
    }

    /// What has become of the data plane, if the daemon answers.
    pub fn state(&self) -> Option<DataplaneState> {
        self.try_status().ok().map(|status| status.dataplane.state)
    }

    fn try_status(&self) -> Result<Status, String> {
        let output = self.try_cli("status --output json");
        serde_json::from_slice(&output.stdout).map_err(|e| format!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The first worker, as `podwire status` tells of it.
    #[track_caller]
    pub fn worker(&self) -> WorkerStatus {
        let figures = self.status().dataplane.figures.expect("the data plane runs");
        figures.workers.into_iter().next().expect("a worker")
    }

    /// How long the workers have run on a CPU.
    pub fn worker_time(&self) -> Duration {
        thread_time(self.daemon(), "podwire-w")
    }

    /// A core that is no worker's, where there is one.
    pub fn spare_core(&self) -> usize {
        self.host.core(self.options.workers)
    }

    /// `podwire stats`.
    #[track_caller]
    pub fn stats(&self) -> Stats {
        serde_json::from_str(&self.cli("stats --output json")).expect("stats prints JSON")
    }

    /// The node's own inner MAC.
    pub fn vtep_mac(&self) -> String {
        self.host.netns.mac(VXLAN_DEVICE)
    }

    pub fn peer(&self) -> Peer {
        let vtep_mac6 = self.host.wire.dual.then(|| self.host.netns.mac(SECOND_DEVICE));
        Peer { vtep_mac6, ..self.host.peer(Some(self.vtep_mac())) }
    }

    /// Packets between pods of this node and remote pods that each path has carried so far, both directions together.
    pub fn carried(&self) -> Carried {
        let second = self.host.wire.dual.then_some(SECOND_DEVICE);
        let packets = |device: &str| {
            let link = self.host.netns.run(&format!("ip -json -statistics link show dev {device}"));
            let link: serde_json::Value = serde_json::from_str(&link).expect("ip prints JSON");
            let of = |way: &str| link[0]["stats64"][way]["packets"].as_u64().expect("a counter");
            of("rx") + of("tx")
        };
        let stats = self.stats();
        let tallies = stats.workers.iter().map(|w| &w.tallies).chain([&stats.retired]);
        let counted = |label: &str| tallies.clone().filter_map(|t| t.counts.get(label)).sum::<u64>();
        // The kernel counts what it receives before it merges.
        let received = counted("pod_tx_packets") - counted("pod_tx_super") + counted("pod_tx_merged");
        Carried {
            fast: counted("pod_rx_packets") + received,
            kernel: [VXLAN_DEVICE].into_iter().chain(second).map(packets).sum(),
        }
    }
}

impl Drop for PodwireNode {
    fn drop(&mut self) {
        let Some(mut daemon) = self.daemon.take().filter(|_| !self.lasting) else { return };
        if thread::panicking() {
            for verb in ["status", "stats"] {
                println!(
                    "---- {verb} of {}\n{}",
                    self.host.name(),
                    String::from_utf8_lossy(&self.try_cli(verb).stdout)
                );
            }
        }
        super::signal(&daemon, libc::SIGTERM);
        if !wait_until(PATIENCE, || !matches!(daemon.try_wait(), Ok(None))) {
            daemon.kill().ok();
            daemon.wait().ok();
        }
        if thread::panicking() {
            println!("---- log of {}\n{}", self.host.name(), self.log_text());
        }
    }
}

/// The section of a node that serves metrics, or nothing.
fn metrics_section(metrics: bool) -> String {
    if metrics { format!("\n[metrics]\nlisten = \"{}\"\nsocket = true\n", PodwireNode::METRICS) } else { String::new() }
}

/// What each path has carried, in packets (a super-packet of a pod counts once).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// By the workers.
    pub fast: u64,
    /// By the kernel's VXLAN device.
    pub kernel: u64,
}

impl Carried {
    /// What was carried since `before`.
    pub fn since(self, before: Self) -> Self {
        Self { fast: self.fast - before.fast, kernel: self.kernel - before.kernel }
    }

    /// The share of the fast path, 0 to 1; 0 when nothing was carried.
    #[allow(clippy::cast_precision_loss, reason = "packet counts of a test are far below 2^52")]
    pub fn fast_share(self) -> f64 {
        self.fast as f64 / (self.fast + self.kernel).max(1) as f64
    }
}

/// The podwire to test: the one that cargo built with the tests, unless `PODWIRE_BIN` names another.
pub fn binary() -> OsString {
    std::env::var_os("PODWIRE_BIN")
        .or_else(|| option_env!("CARGO_BIN_EXE_podwire").map(Into::into))
        .expect("PODWIRE_BIN names the binary where cargo does not")
}
