//! Ceilings: nodes that pass each frame between one pod and the wire as it is, without a look at it. No tunnel, no
//! routes, no other pod.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use super::systems::attach_program;
use crate::harness::{Host, Pod, Prefix, wait_until};

/// How long DPDK may take to poll both devices.
const PATIENCE: Duration = Duration::from_secs(20);

/// Packet memory and DPDK's own, in MiB, of ordinary pages.
const MEMORY: u32 = 512;

/// What passes the frames on.
#[derive(Clone, Copy)]
pub enum Relay {
    /// DPDK's `testpmd` by its driver for AF_XDP: what any program in userspace can have.
    Testpmd,
    /// XDP programs of a line: what never leaves the kernel's drivers.
    Redirect,
}

pub struct RelayNode {
    pub host: Host,
    pub pods: Vec<Pod>,
    relay: Relay,
    testpmd: Option<Child>,
}

impl RelayNode {
    pub fn new(host: Host, relay: Relay) -> Self {
        Self { host, pods: Vec::new(), relay, testpmd: None }
    }

    /// Adds the pod, which knows the gateway's MAC, and begins.
    pub fn add_pod(&mut self, prefix: &Prefix, name: &str) -> Result<(), String> {
        if !self.pods.is_empty() {
            return Err("it passes frames on for one pod".to_owned());
        }
        let netns = prefix.netns(name);
        netns.skip_dad();
        let Host { netns: host, index, uplink, .. } = &self.host;
        let (device, gateway) = (format!("veth-{name}"), format!("10.244.{index}.1"));
        host.run_all([
            format!("ip link add {device} type veth peer name eth0 netns {}", netns.name()),
            format!("ip link set {device} up"),
        ]);
        netns.run_all([
            format!("ip address add 10.244.{index}.2/32 dev eth0"),
            format!("ip address add fd00:244:{index}::2/128 dev eth0 nodad"),
            "ip link set eth0 up".to_owned(),
            format!("ip neigh add {gateway} lladdr 02:00:00:00:fd:01 dev eth0 nud permanent"),
            format!("ip route add {gateway} dev eth0"),
            format!("ip route add default via {gateway}"),
        ]);
        self.pods.push(Pod::of(name.to_owned(), netns));
        let devices = [uplink.as_str(), &device];
        match self.relay {
            Relay::Testpmd => self.testpmd = Some(testpmd(&self.host, devices, prefix.dir())?),
            Relay::Redirect => redirect(&self.host, devices, prefix.dir())?,
        }
        Ok(())
    }
}

impl Drop for RelayNode {
    fn drop(&mut self) {
        if let Some(testpmd) = &mut self.testpmd {
            testpmd.kill().ok();
            testpmd.wait().ok();
        }
    }
}

/// Passes frames on by one thread, as a worker would, on the core that is not the generator's if there is one.
fn testpmd(host: &Host, devices: [&str; 2], dir: &Path) -> Result<Child, String> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let cores = if cores > 1 { "--lcores=0@0,1@1" } else { "--lcores=0@0,1@0" };
    let log = dir.join("testpmd.log");
    let out = fs::File::create(&log).map_err(|e| format!("{}: {e}", log.display()))?;
    let err = out.try_clone().map_err(|e| e.to_string())?;
    let mut command = host.netns.command("dpdk-testpmd");
    command.args([cores, "--main-lcore=0", "--no-pci", "--no-huge", "--no-telemetry"]);
    command.args([&format!("-m{MEMORY}"), &format!("--file-prefix={}", host.netns.name())]);
    for (n, device) in devices.iter().enumerate() {
        command.arg(format!("--vdev=net_af_xdp{n},iface={device},start_queue=0,queue_count=1"));
    }
    command.args(["--", "--forward-mode=io", "--auto-start", "--nb-cores=1", "--total-num-mbufs=32768"]);
    // It ends when its input does.
    command.stdin(Stdio::piped()).stdout(out).stderr(err).env("RUNTIME_DIRECTORY", dir);
    let mut child = command.spawn().map_err(|e| format!("dpdk-testpmd: {e}"))?;
    let polls = |device| host.netns.run(&format!("ip link show dev {device}")).contains("xdp");
    if wait_until(PATIENCE, || devices.iter().all(polls)) {
        return Ok(child);
    }
    child.kill().ok();
    child.wait().ok();
    Err(format!("dpdk-testpmd does not poll: {}", fs::read_to_string(log).unwrap_or_default()))
}

/// Has the driver of each of two devices send by the other.
fn redirect(host: &Host, devices: [&str; 2], dir: &Path) -> Result<(), String> {
    for (device, other) in [(devices[0], devices[1]), (devices[1], devices[0])] {
        let target = host.netns.link(other)["ifindex"].as_u64().ok_or("no index")?;
        let mut program = "static long (*redirect)(unsigned int, unsigned long long) = (void *)23;\n".to_owned();
        writeln!(program, "__attribute__((section(\"xdp\"))) int pass(void *ctx) {{ return redirect({target}, 0); }}")
            .map_err(|e| e.to_string())?;
        attach_program(host, device, &program, dir)?;
    }
    Ok(())
}
