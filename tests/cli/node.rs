//! A node to try the binary on: a network namespace, an uplink, a configuration, a daemon.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::rc::Rc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Netns, Prefix, host};
use crate::{BINARY, CONFIG, podwire, stderr, stdout};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node whose uplink's far end is nobody's. Dropping it removes all of it.
pub struct Node {
    netns: Netns,
    pods: BTreeMap<String, Netns>,
    daemon: Option<Child>,
    dir: PathBuf,
    prefix: Rc<Prefix>,
}

impl Node {
    /// Makes the uplink, in the node's namespace.
    pub const UPLINK: &str = "ip link add eth0 type veth peer name far0 && ip link set far0 up && \
        ip link set eth0 up && ip addr add 192.168.1.2/24 dev eth0";

    /// A node whose daemon answers.
    pub fn start() -> Self {
        let mut node = Self::prepare();
        node.run();
        node
    }

    /// A node on which no daemon has run yet.
    pub fn prepare() -> Self {
        Self::named("node", Rc::new(Prefix::fresh()))
    }

    /// Another node whose daemon answers, apart from this one but for the laboratory.
    pub fn start_beside(&self) -> Self {
        let mut node = Self::named("elsewhere", Rc::clone(&self.prefix));
        node.run();
        node
    }

    fn named(name: &str, prefix: Rc<Prefix>) -> Self {
        let dir = prefix.dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        let node = Self { netns: prefix.netns(name), pods: BTreeMap::new(), daemon: None, dir, prefix };
        node.inside(Self::UPLINK);
        node.configure(CONFIG);
        node
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("podwire.toml")
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn socket(&self) -> PathBuf {
        self.runtime_dir().join("control.sock")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Replaces the configuration file in one step.
    pub fn configure(&self, text: &str) {
        let aside = self.dir.join("new");
        fs::write(&aside, text).unwrap();
        fs::rename(aside, self.config()).unwrap();
    }

    pub fn daemon_command(&self) -> Command {
        self.daemon_command_in(&self.runtime_dir())
    }

    /// The daemon with a runtime directory other than the node's.
    pub fn daemon_command_in(&self, runtime_dir: &Path) -> Command {
        let mut command = self.netns.command(BINARY);
        command.arg("run").arg("--config").arg(self.config()).arg("--runtime-dir").arg(runtime_dir);
        command
    }

    /// Starts the daemon and waits until it answers.
    pub fn run(&mut self) {
        self.run_as(&[]);
    }

    /// The same by a wrapper, which becomes the daemon.
    pub fn run_as(&mut self, wrapper: &[&str]) {
        let log = OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut words = wrapper.iter().copied().chain([BINARY]);
        let mut command = self.netns.command(words.next().unwrap());
        command.args(words).arg("run").arg("--config").arg(self.config()).arg("--runtime-dir").arg(self.runtime_dir());
        self.daemon = Some(command.stderr(log).spawn().unwrap());
        let end = Instant::now() + PATIENCE;
        while !self.ask(&["status"]).status.success() {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < end, "no daemon answers\n{}", self.log());
            sleep(Duration::from_millis(50));
        }
    }

    pub fn signal(&self, signal: &str) {
        host(&format!("kill -{signal} {}", self.daemon.as_ref().unwrap().id()));
    }

    /// Ends the daemon by a signal.
    pub fn stop(&mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        self.daemon.take().unwrap().wait().unwrap()
    }

    /// Asks the daemon by the command line.
    pub fn ask(&self, args: &[&str]) -> Output {
        let dir = self.runtime_dir();
        podwire(&[args, &["--runtime-dir", dir.to_str().unwrap()]].concat())
    }

    /// The number of the node's namespace, by which its pins are called.
    pub fn cookie(&self) -> u64 {
        self.netns.within(|| podwire::control::netns::cookie().unwrap())
    }

    /// Runs `podwire uninstall` on the node.
    pub fn uninstall(&self, args: &[&str]) -> Output {
        let mut command = self.netns.command(BINARY);
        command.arg("uninstall").args(args).arg("--runtime-dir").arg(self.runtime_dir()).output().unwrap()
    }

    /// Waits until the daemon has ended by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        self.daemon.take().unwrap().wait().unwrap()
    }

    /// Asks the daemon and expects an answer.
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.ask(&[args, &["--output", "json"]].concat());
        assert!(output.status.success(), "{args:?}: {}\n{}", stderr(&output), self.log());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Makes a namespace for a pod and gives its path.
    pub fn pod_netns(&mut self, name: &str) -> String {
        let netns = self.prefix.netns(name);
        let path = netns.path().to_str().unwrap().to_owned();
        self.pods.insert(name.to_owned(), netns);
        path
    }

    /// Removes a pod's namespace behind the daemon's back.
    pub fn remove_pod_netns(&mut self, name: &str) {
        self.pods.remove(name).unwrap().remove();
    }

    /// Attaches a new pod with addresses of the daemon's choice.
    pub fn attach(&mut self, name: &str) -> Value {
        let path = self.pod_netns(name);
        self.json(&["pods", "attach", "--netns", &path, "--ifname", "eth0", "--name", name])
    }

    /// A program, to be started in the node's namespace.
    pub fn command(&self, program: &str) -> Command {
        self.netns.command(program)
    }

    /// A directory for files of this node.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The standard output of a command in the node's namespace.
    pub fn inside(&self, command: &str) -> String {
        stdout(&self.netns.command("sh").args(["-c", command]).output().unwrap())
    }

    /// Runs a command in a pod's namespace.
    pub fn inside_pod(&self, name: &str, command: &str) {
        self.pods[name].run(command);
    }

    /// Whether an address answers the node at the first packet.
    pub fn can_ping(&self, address: &str) -> bool {
        self.inside(&format!("ping -c1 -W2 -n {address} >/dev/null && echo yes")) == "yes\n"
    }

    pub fn wait_for(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < end, "never: {what}\n{}", self.log());
            sleep(Duration::from_millis(50));
        }
    }

    /// Sends bytes to the control socket, closes the sending side, and gives the answer.
    pub fn throw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
