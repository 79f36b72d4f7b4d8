//! A node whose pods Open vSwitch carries in userspace, by DPDK's driver for AF_XDP (Debian's
//! `openvswitch-switch-dpdk`). One thread polls all devices.
//!
//! ```text
//!   pods' veth ── br-int ── VXLAN port ── (tunnel) ── br-phy ── eth0
//!                 flows: a pod's address or another node's range     has the underlay address
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::netns::{Netns, Prefix};
use super::site::{Host, Peer, Pod};
use super::thread_time;
use super::traffic::wait_until;

/// Where Debian has the program, which its alternatives system may or may not link to.
const SWITCH: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// Packet memory and DPDK's own, in MiB, of ordinary pages.
const MEMORY: u32 = 1024;

/// How long the database may take to serve.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct OvsNode {
    pub host: Host,
    pub pods: Vec<Pod>,
    dir: PathBuf,
    switch: Daemon,
    _database: Daemon,
}

/// A process that ends with its owner.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl OvsNode {
    /// Starts the switch, and makes a peer's pods reachable. The error is what Open vSwitch says.
    pub fn start(prefix: &Prefix, host: Host, peer: &Peer) -> Result<Self, String> {
        let dir = prefix.dir().join(host.name());
        fs::create_dir_all(&dir).expect("a directory for the node");
        let [db, log] = ["conf.db", "log"].map(|name| dir.join(name).display().to_string());
        super::host(&format!("ovsdb-tool create {db} {SCHEMA}"));
        let database = start(&host.netns, &dir, "ovsdb-server", &[&db, &format!("--remote=p{}", socket(&dir))]);
        if !wait_until(PATIENCE, || dir.join("db.sock").exists()) {
            return Err("ovsdb-server does not serve".to_owned());
        }
        configure(&dir, &host)?;
        let switch = start(&host.netns, &dir, SWITCH, &[&socket(&dir), &format!("--log-file={log}")]);
        let node = Self { host, pods: Vec::new(), dir, switch, _database: database };
        node.bridges(peer)?;
        Ok(node)
    }

    /// The bridge of the uplink, and the one of the pods with the tunnel.
    fn bridges(&self, peer: &Peer) -> Result<(), String> {
        let Host { netns, uplink, underlay, .. } = &self.host;
        let mac = netns.mac(uplink);
        netns.run(&format!("ip address flush dev {uplink}"));
        self.vsctl(&format!(
            "add-br br-phy -- set bridge br-phy datapath_type=netdev other_config:hwaddr=\"{mac}\" -- {} -- \
             add-br br-int -- set bridge br-int datapath_type=netdev fail_mode=secure -- \
             add-port br-int tunnel -- set interface tunnel type=vxlan options:remote_ip={} \
             options:local_ip={underlay} options:key=1 options:dst_port=8472",
            self.port("br-phy", uplink),
            peer.underlay,
        ))?;
        netns.run_all([format!("ip address add {underlay}/24 dev br-phy"), "ip link set br-phy up".to_owned()]);
        let [to_peer, _] = peer.pod_cidrs();
        self.flow(&format!(
            "ip,nw_dst={to_peer},actions=dec_ttl,mod_dl_src:{},mod_dl_dst:{},output:tunnel",
            mac_of(self.host.index),
            mac_of(peer.index)
        ))
    }

    /// Adds a pod, which knows the gateway's MAC.
    pub fn add_pod(&mut self, prefix: &Prefix, name: &str) -> Result<(), String> {
        let netns = prefix.netns(name);
        netns.skip_dad();
        let (index, last) = (self.host.index, self.pods.len() + 2);
        let (port, mtu) = (format!("veth-{name}"), self.host.wire.overlay_mtu());
        let gateway = format!("10.244.{index}.1");
        self.host.netns.run_all([
            format!("ip link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", netns.name()),
            format!("ip link set {port} up"),
        ]);
        netns.run_all([
            // What the switch sees must be whole: it neither cuts nor sums.
            "ethtool -K eth0 tx off tso off gso off".to_owned(),
            format!("ip address add 10.244.{index}.{last}/32 dev eth0"),
            format!("ip address add fd00:244:{index}::{last}/128 dev eth0 nodad"),
            "ip link set eth0 up".to_owned(),
            format!("ip neigh add {gateway} lladdr {} dev eth0 nud permanent", mac_of(index)),
            format!("ip route add {gateway} dev eth0"),
            format!("ip route add default via {gateway}"),
        ]);
        self.vsctl(&self.port("br-int", &port))?;
        self.flow(&format!(
            "ip,nw_dst=10.244.{index}.{last},actions=dec_ttl,mod_dl_src:{},mod_dl_dst:{},output:{port}",
            mac_of(index),
            netns.mac("eth0")
        ))?;
        self.pods.push(Pod::of(name.to_owned(), netns));
        Ok(())
    }

    /// The switch.
    pub fn process(&self) -> &Child {
        &self.switch.0
    }

    /// How long the thread that polls has run on a CPU.
    pub fn worker_time(&self) -> Duration {
        thread_time(&self.switch.0, "pmd-")
    }

    /// What adds a device to a bridge.
    fn port(&self, bridge: &str, device: &str) -> String {
        format!(
            "add-port {bridge} {device} -- set interface {device} type=dpdk \
             options:dpdk-devargs=net_af_xdp_{device},iface={device},start_queue=0,queue_count=1 mtu_request={}",
            self.host.wire.mtu
        )
    }

    fn flow(&self, flow: &str) -> Result<(), String> {
        let bridge = format!("unix:{}", self.dir.join("br-int.mgmt").display());
        run(&self.dir, "ovs-ofctl", &["add-flow", &bridge, flow])
    }

    fn vsctl(&self, words: &str) -> Result<(), String> {
        vsctl(&self.dir, words)
    }
}

/// The gateway of a node's pods.
fn mac_of(index: u8) -> String {
    format!("02:00:00:00:fd:{index:02x}")
}

/// What must be known before the switch starts: its core and its memory.
fn configure(dir: &Path, host: &Host) -> Result<(), String> {
    // Without `--legacy-mem` Open vSwitch adds `--in-memory`, which wants hugepages.
    let extra = format!("--no-pci --no-huge --legacy-mem -m {MEMORY} --file-prefix={}", host.netns.name());
    run(dir, "ovs-vsctl", &[&format!("--db={}", socket(dir)), "--no-wait", "init"])?;
    let settings = [
        "dpdk-init=true".to_owned(),
        "dpdk-lcore-mask=1".to_owned(),
        format!("pmd-cpu-mask={:x}", 1 << host.core(0)),
        format!("dpdk-extra={extra}"),
    ];
    let settings = settings.map(|setting| format!("other_config:{}", setting.replacen('=', "=\"", 1) + "\""));
    let mut words = vec![format!("--db={}", socket(dir)), "--no-wait".to_owned(), "set".to_owned()];
    words.extend(["Open_vSwitch".to_owned(), ".".to_owned()].into_iter().chain(settings));
    run(dir, "ovs-vsctl", &words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Changes the database, and waits until the switch has taken it. What the switch cannot do it says on standard error,
/// and succeeds.
fn vsctl(dir: &Path, words: &str) -> Result<(), String> {
    let db = format!("--db={}", socket(dir));
    let words: Vec<&str> = [&*db, "--timeout=60"].into_iter().chain(words.split_whitespace()).collect();
    run(dir, "ovs-vsctl", &words)
}

fn socket(dir: &Path) -> String {
    format!("unix:{}", dir.join("db.sock").display())
}

/// A program of Open vSwitch that keeps its files, and DPDK's, in `dir`.
fn with_files_in(mut command: Command, dir: &Path) -> Command {
    for name in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR", "RUNTIME_DIRECTORY"] {
        command.env(name, dir);
    }
    command
}

fn start(netns: &Netns, dir: &Path, program: &str, words: &[&str]) -> Daemon {
    let mut command = with_files_in(netns.command(program), dir);
    let name = Path::new(program).file_name().expect("a program").to_string_lossy().into_owned();
    command.args(words).arg(format!("--unixctl={}", dir.join(name).display())).arg("-vconsole:off");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Daemon(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}")))
}

fn run(dir: &Path, program: &str, words: &[&str]) -> Result<(), String> {
    let output = with_files_in(Command::new(program), dir).args(words).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() && said.is_empty() { Ok(()) } else { Err(format!("{program} {words:?}: {said}")) }
}
