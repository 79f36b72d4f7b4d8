//! `tuning/`: the script that applies profiles, and the service.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::node::Node;
use crate::{BINARY, is_root, stderr, stdout};

fn tuning(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning").join(file)
}

/// A machine's settings in files, as far as the profiles know them.
struct Machine(tempfile::TempDir);

const GOVERNOR: &str = "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor";
const BACKLOG: &str = "proc/sys/net/core/netdev_max_backlog";
const IDLE: &str = "sys/devices/system/cpu/cpu1/cpuidle";
const DEFERRAL: [&str; 2] = ["sys/class/net/nic0/napi_defer_hard_irqs", "sys/class/net/nic0/gro_flush_timeout"];
const INTERRUPT: &str = "proc/irq/24/smp_affinity_list";

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for (file, value) in [
            (GOVERNOR, "powersave"),
            (BACKLOG, "1000"),
            ("proc/sys/vm/nr_hugepages", "0"),
            (INTERRUPT, "0-7"),
            (DEFERRAL[0], "0"),
            (DEFERRAL[1], "0"),
            ("sys/class/net/nic0/device/msi_irqs/24", "msix"),
        ] {
            machine.write(file, value);
        }
        for (state, latency) in [(0, "0"), (1, "2"), (2, "133")] {
            machine.write(&format!("{IDLE}/state{state}/latency"), latency);
            machine.write(&format!("{IDLE}/state{state}/disable"), "0");
        }
        machine
    }

    fn write(&self, file: &str, value: &str) {
        let path = self.0.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.path().join(file)).unwrap().trim().to_owned()
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(tuning("tune"));
        command.args(args).arg("--root").arg(self.0.path()).arg("--state").arg(self.state());
        command.args(["--uplink", "nic0", "--cores", "1"]);
        command
    }

    fn tune(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// All settings.
    fn settings(&self) -> Vec<String> {
        let idle = (0..3).map(|state| format!("{IDLE}/state{state}/disable"));
        let others = [GOVERNOR, BACKLOG, INTERRUPT, "proc/sys/vm/nr_hugepages"].map(str::to_owned);
        others.into_iter().chain(idle).chain(DEFERRAL.map(str::to_owned)).map(|file| self.read(&file)).collect()
    }
}

#[test]
fn a_profile_is_shown_without_a_change() {
    let machine = Machine::new();
    let before = machine.settings();
    for args in [&["throughput"][..], &["throughput", "--dry-run"]] {
        let shown = machine.tune(args);
        assert_eq!(shown.status.code(), Some(0), "{}", stderr(&shown));
        let line = stdout(&shown).lines().find(|line| line.contains("scaling_governor")).unwrap_or_default().to_owned();
        assert_eq!(line.split_whitespace().skip(1).collect::<Vec<_>>(), ["powersave", "performance"]);
        assert!(stdout(&shown).contains("# Frequency follows load too slowly"), "{}", stdout(&shown));
    }
    assert_eq!(machine.settings(), before);
    assert!(!machine.state().exists());
}

#[test]
fn what_is_applied_is_undone_and_twice_is_once() {
    for (profile, after) in [
        ("throughput", ["performance", "10000", "1", "64", "0", "0", "1", "0", "0"]),
        ("small", ["performance", "4000", "1", "0", "0", "0", "1", "0", "0"]),
        ("low-latency", ["performance", "1000", "1", "64", "0", "0", "1", "2", "200000"]),
    ] {
        let machine = Machine::new();
        let before = machine.settings();
        for _ in 0..2 {
            let applied = machine.tune(&[profile, "--apply"]);
            assert_eq!(applied.status.code(), Some(0), "{}", stderr(&applied));
            assert_eq!(machine.settings(), after, "{profile}");
        }
        let undone = machine.tune(&["--undo"]);
        assert_eq!(undone.status.code(), Some(0), "{}", stderr(&undone));
        assert_eq!((machine.settings(), machine.state().exists()), (before, false), "{profile}");
        assert_eq!(stdout(&machine.tune(&["--undo"])), "nothing to undo\n");
    }
}

#[test]
fn another_profile_wants_the_first_to_be_undone() {
    let machine = Machine::new();
    assert!(machine.tune(&["small", "--apply"]).status.success());
    let refused = machine.tune(&["throughput", "--apply"]);
    assert_eq!((refused.status.code(), machine.read(BACKLOG)), (Some(2), "4000".into()));
    assert!(stderr(&refused).contains("profile small is applied"), "{}", stderr(&refused));
    assert_eq!(machine.tune(&["huge", "--apply"]).status.code(), Some(2));
    assert_eq!(machine.tune(&["small", "--aply"]).status.code(), Some(2));
    let no_list = Command::new(tuning("tune")).args(["small", "--cores", "all"]).output().unwrap();
    assert_eq!(no_list.status.code(), Some(2), "{}", stderr(&no_list));
}

#[test]
fn an_apply_that_is_interrupted_can_be_undone() {
    let machine = Machine::new();
    let before = machine.settings();
    // The script waits at a pipe for its value, as it would for a slow driver.
    let setting = machine.0.path().join("proc/sys/vm/compaction_proactiveness");
    assert!(Command::new("mkfifo").arg(&setting).status().unwrap().success());
    let mut running = machine.command(&["low-latency", "--apply"]).spawn().unwrap();
    let mut pipe = fs::File::options().write(true).open(&setting).unwrap();
    let pid = i32::try_from(running.id()).unwrap();
    // SAFETY: plain system call; the child is ours and not reaped.
    unsafe { libc::kill(pid, libc::SIGINT) };
    fs::remove_file(&setting).unwrap();
    fs::write(&setting, "20\n").unwrap();
    pipe.write_all(b"20\n").unwrap();
    drop(pipe);
    assert_eq!(running.wait().unwrap().code(), Some(1));
    assert!(machine.state().exists() && machine.settings() != before);
    assert!(machine.tune(&["--undo"]).status.success());
    assert_eq!((machine.settings(), fs::read_to_string(setting).unwrap().as_str()), (before, "20\n"));
}

#[test]
fn the_settings_of_a_real_device_are_read_and_kept() {
    if !is_root() {
        return;
    }
    let node = Node::prepare();
    let dir = tempfile::tempdir().unwrap();
    let mut command = node.command(tuning("tune").to_str().unwrap());
    command.args(["small", "--uplink", "eth0", "--cores", "0", "--state"]).arg(dir.path().join("state"));
    let shown = command.output().unwrap();
    assert!(shown.status.success(), "{}", stderr(&shown));
    let hash = stdout(&shown).lines().find(|line| line.starts_with("hash udp4 of eth0")).unwrap().to_owned();
    assert_eq!(hash.split_whitespace().skip(4).collect::<Vec<_>>(), ["-", "sdfn"], "a veth does not hash");
}

/// The value of a setting of the service.
fn unit(key: &str) -> String {
    let text = fs::read_to_string(tuning("podwire.service")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned)).expect("a setting")
}

#[test]
fn the_service_is_understood_by_systemd() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        println!("skipped: no systemd-analyze");
        return;
    };
    assert!(version.status.success());
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(tuning("podwire.service")).unwrap();
    let here = text.replace("/usr/local/bin/podwire", BINARY);
    assert_ne!(text, here);
    let file = dir.path().join("podwire.service");
    fs::write(&file, here).unwrap();
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output().unwrap();
    assert!(verified.status.success() && verified.stderr.is_empty(), "{}", stderr(&verified));
}

#[test]
fn the_capabilities_of_the_service_are_enough_for_daemon_and_doctor() {
    if !is_root() {
        return;
    }
    let mut node = Node::prepare();
    node.configure(&crate::CONFIG.replace("mode = \"kernel\"", "mode = \"adaptive\"\ncores = [0]"));
    let kept: Vec<_> = unit("CapabilityBoundingSet").split(' ').map(|name| name.replace("CAP_", "+")).collect();
    let bounded = format!("-all,{}", kept.join(",").to_lowercase());
    node.run_as(&["setpriv", "--no-new-privs", "--bounding-set", &bounded, "--inh-caps", "-all"]);
    node.wait_for("the data plane", |node| node.json(&["status"])["dataplane"]["state"] == "running");
    let pod = node.attach("web");
    assert!(node.can_ping(pod["addresses"][0].as_str().unwrap()), "{}", node.log());
    assert_eq!(node.json(&["status"])["problems"], serde_json::json!([]));
    let mut command = node.command("setpriv");
    command.args(["--no-new-privs", "--bounding-set", &bounded, "--inh-caps", "-all", BINARY, "doctor"]);
    let seen = command.arg("--runtime-dir").arg(node.runtime_dir()).output().unwrap();
    assert!(seen.status.success(), "{}", stdout(&seen));
    assert!(node.ask(&["pods", "detach", "--name", "web"]).status.success());
}
