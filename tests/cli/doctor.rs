//! `podwire doctor` on a real node that something is broken on: it names that, and its fix puts it right.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::host;
use crate::node::Node;
use crate::{BINARY, CONFIG, is_root, stderr, stdout};

fn adaptive() -> String {
    CONFIG.replace("mode = \"kernel\"", "mode = \"adaptive\"\ncores = [0]")
}

/// A node whose data plane runs.
fn fast_node() -> Node {
    let node = Node::start();
    node.configure(&adaptive());
    node.wait_for("the data plane", |node| node.json(&["status"])["dataplane"]["state"] == "running");
    node
}

/// Completes a command line, whose words so far are those of a wrapper or none.
fn doctor_by(mut command: Command, node: &Node, args: &[&str]) -> Output {
    command.args(["doctor", "--runtime-dir"]).arg(node.runtime_dir()).arg("--config").arg(node.config());
    command.arg("--cni-dir").arg(node.dir().join("cni")).args(args).output().unwrap()
}

fn doctor(node: &Node, args: &[&str]) -> Output {
    doctor_by(node.command(BINARY), node, args)
}

/// The findings of one check that are not well.
fn bad(output: &Output, id: &str) -> Vec<Value> {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", stderr(output)));
    let findings = report["findings"].as_array().unwrap().iter();
    findings.filter(|finding| finding["id"] == id && finding["severity"] != "ok").cloned().collect()
}

fn complaints(node: &Node, id: &str) -> Vec<Value> {
    bad(&doctor(node, &["--output", "json"]), id)
}

/// The one complaint of a check, which has a severity and says a word; returns its command.
#[track_caller]
fn named(node: &Node, id: &str, severity: &str, word: &str) -> String {
    let found = complaints(node, id);
    assert_eq!(found.len(), 1, "{id}: {found:#?}\n{}", stdout(&doctor(node, &["--all"])));
    assert_eq!(found[0]["severity"], severity, "{found:#?}");
    assert!(found[0].to_string().contains(word), "{word}: {found:#?}");
    assert!(!found[0]["meaning"].as_str().unwrap().is_empty());
    found[0]["fix"]["command"].as_str().unwrap_or_default().to_owned()
}

/// The same, and its command puts it right.
#[track_caller]
fn named_and_fixed(node: &Node, id: &str, severity: &str, word: &str) {
    let command = named(node, id, severity, word);
    assert!(!command.is_empty(), "{id} has no command");
    node.inside(&command);
    assert_eq!(complaints(node, id), [] as [Value; 0], "after `{command}`");
}

#[test]
fn a_node_in_order_has_no_error_and_the_report_fits_a_terminal() {
    if !is_root() {
        return;
    }
    let mut node = fast_node();
    node.attach("web");
    let output = doctor(&node, &[]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    let all = stdout(&doctor(&node, &["--all"]));
    for well in
        ["ok data-plane: it runs", "ok bpf-programs", "ok af-xdp", "ok uplink-driver: veth: the kernel receives"]
    {
        assert!(all.contains(well), "{well}: {all}");
    }
    assert!(all.contains("ok mtu-pods: 1 pod(s) fit") && all.contains("ok vxlan-clash"), "{all}");
    let long = all.lines().find(|line| line.chars().count() > 80 && !line.starts_with("  fix: "));
    assert_eq!(long, None);
    let report: Value = serde_json::from_slice(&doctor(&node, &["--output", "json"]).stdout).unwrap();
    assert_eq!(report["findings"].as_array().unwrap().iter().filter(|found| found["id"] == "bpffs").count(), 1);
    assert_eq!(node.inside("ip -br link show type vxlan").lines().count(), 1, "the trials left no device");
}

#[test]
fn without_daemon_and_configuration_the_machine_alone_is_looked_at() {
    if !is_root() {
        return;
    }
    let node = Node::prepare();
    let mut command = node.command(BINARY);
    command.args(["doctor", "--all", "--runtime-dir", "/nonexistent", "--config"]).arg(node.dir().join("none.toml"));
    let output = command.output().unwrap();
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for said in
        ["error config: ", "none.toml", "note daemon: no daemon answers", "ok kernel-version: Linux", "ok bpf-programs"]
    {
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[test]
fn a_strict_reverse_path_filter_is_named_and_put_right() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.stop("TERM");
    assert!(complaints(&node, "rp-filter").is_empty());
    node.inside("echo 1 >/proc/sys/net/ipv4/conf/podwire.1/rp_filter");
    named_and_fixed(&node, "rp-filter", "warning", "podwire.1");
}

#[test]
fn a_shrunken_uplink_is_named_and_the_overlay_follows() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    node.stop("TERM");
    node.inside("ip link set eth0 mtu 1400");
    assert_eq!(doctor(&node, &[]).status.code(), Some(1));
    named(&node, "mtu-uplink", "note", "eth0 has MTU 1400");
    named_and_fixed(&node, "mtu-vxlan", "error", "podwire.1 has MTU 1450, the uplink has room for 1350");
    node.inside("ip link set eth0 mtu 1500");
    assert!(complaints(&node, "mtu-uplink").is_empty());
    named_and_fixed(&node, "mtu-vxlan", "note", "room for 1450");
}

#[test]
fn a_foreign_xdp_program_is_named_and_the_data_plane_starts_when_it_is_gone() {
    if !is_root() {
        return;
    }
    let node = Node::start();
    let source = "int keep(void *frame) __attribute__((section(\"xdp\"), used)); int keep(void *frame) { return 2; }\n";
    fs::write(node.dir().join("keep.c"), source).unwrap();
    let object = node.dir().join("keep.o");
    let compile = ["-O2", "-target", "bpf", "-c", "-o"];
    let made = Command::new("clang").args(compile).arg(&object).arg(node.dir().join("keep.c")).status();
    assert!(made.unwrap().success());
    let attach = format!("ip link set dev eth0 xdpdrv object {} section xdp && echo done", object.display());
    assert_eq!(node.inside(&attach), "done\n");
    node.configure(&adaptive().replace("cores = [0]", "cores = [0]\nxdp = \"native\""));
    node.wait_for("the failure", |node| node.json(&["status"])["dataplane"]["state"] == "failed");
    named(&node, "data-plane", "error", "already runs XDP program");
    named_and_fixed(&node, "uplink-xdp", "error", "(keep) runs on eth0");
    node.wait_for("the data plane", |node| node.json(&["status"])["dataplane"]["state"] == "running");
    assert!(complaints(&node, "data-plane").is_empty() && complaints(&node, "uplink-xdp").is_empty());
}

#[test]
fn a_refused_start_is_explained_by_daemon_and_doctor_in_the_same_words() {
    if !is_root() {
        return;
    }
    let node = Node::start();
    node.configure(&adaptive().replace("cores = [0]", "cores = [0]\nzero_copy = \"require\""));
    node.wait_for("the failure", |node| node.json(&["status"])["dataplane"]["state"] == "failed");
    let words = "cannot share packet memory with AF_XDP";
    let reason = node.json(&["status"])["dataplane"]["reason"].to_string();
    assert!(reason.contains(words), "{reason}");
    named(&node, "data-plane", "error", words);
    assert!(node.log().contains(words), "{}", node.log());
}

#[test]
fn a_configuration_that_runtimes_read_first_is_named_and_moved_away() {
    if !is_root() {
        return;
    }
    let node = Node::prepare();
    let dir = node.dir().join("cni");
    fs::create_dir(&dir).unwrap();
    let list = |kind: &str| format!(r#"{{"cniVersion": "1.0.0", "name": "net", "plugins": [{{"type": "{kind}"}}]}}"#);
    fs::write(dir.join("10-podwire.conflist"), list("podwire")).unwrap();
    assert!(complaints(&node, "cni-order").is_empty());
    fs::write(dir.join("05-bridge.conflist"), list("bridge")).unwrap();
    named_and_fixed(&node, "cni-order", "error", "05-bridge.conflist is read before 10-podwire.conflist");
}

#[test]
fn a_runtime_directory_that_is_open_read_only_or_full_is_named() {
    if !is_root() {
        return;
    }
    let node = Node::prepare();
    let dir = node.runtime_dir();
    let dir = dir.to_str().unwrap();
    host(&format!("mkdir {dir}"));
    host(&format!("chmod 0777 {dir}"));
    named_and_fixed(&node, "runtime-dir", "error", "mode 777");
    host(&format!("mount -t tmpfs -o size=2m,mode=0700 tmpfs {dir}"));
    let mount = Mount(dir);
    assert!(complaints(&node, "runtime-dir").is_empty());
    host(&format!("mount -o remount,ro {dir}"));
    named_and_fixed(&node, "runtime-dir", "error", "Read-only file system");
    fs::write(Path::new(dir).join("filler"), vec![0; 1_500_000]).unwrap();
    named(&node, "runtime-dir", "error", "KiB free");
    fs::remove_file(Path::new(dir).join("filler")).unwrap();
    assert!(complaints(&node, "runtime-dir").is_empty());
    drop(mount);
}

/// Unmounted in the end.
struct Mount<'a>(&'a str);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        host(&format!("umount {}", self.0));
    }
}

#[test]
fn a_missing_bpf_file_system_is_named_and_mounted() {
    if !is_root() {
        return;
    }
    let node = Node::prepare();
    let script = "mount -t tmpfs tmpfs /sys/fs/bpf && \"$@\"; mount -t bpf bpf /sys/fs/bpf && \"$@\" >\"$0\"";
    let after = node.dir().join("after.json");
    let mut command = node.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(&after).arg(BINARY);
    let before = doctor_by(command, &node, &["--output", "json"]);
    let found = bad(&before, "bpffs");
    assert_eq!((found.len(), &found[0]["severity"]), (1, &Value::from("warning")), "{found:#?}");
    assert_eq!(found[0]["fix"]["command"], "mount -t bpf bpf /sys/fs/bpf", "which the script has done then");
    let after = Output { stdout: fs::read(after).unwrap(), ..before };
    assert_eq!(bad(&after, "bpffs"), [] as [Value; 0]);
}

#[test]
fn a_missing_capability_is_named_and_what_it_forbids_too() {
    if !is_root() {
        return;
    }
    let node = Node::prepare();
    let without = |capability: &str| {
        let mut command = node.command("setpriv");
        command.args(["--bounding-set", &format!("-{capability}"), "--inh-caps", &format!("-{capability}"), BINARY]);
        doctor_by(command, &node, &["--output", "json"])
    };
    let lacking = without("net_raw");
    assert!(bad(&lacking, "capabilities")[0]["evidence"] == "CAP_NET_RAW is missing", "{}", stdout(&lacking));
    for id in ["packet-socket", "af-xdp"] {
        let found = bad(&lacking, id);
        assert!(found[0]["meaning"].as_str().unwrap().contains("CAP_NET_RAW"), "{id}: {found:#?}");
    }
    assert_eq!(lacking.status.code(), Some(1));
    let lacking = without("sys_admin");
    assert!(bad(&lacking, "network-namespaces")[0]["meaning"] == "network namespaces need CAP_SYS_ADMIN");
    assert!(complaints(&node, "capabilities").is_empty() && complaints(&node, "af-xdp").is_empty());
}

#[test]
fn a_foreign_tunnel_is_named() {
    if !is_root() {
        return;
    }
    let node = Node::prepare();
    node.inside("ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0 local 192.168.1.2 nolearning");
    named(&node, "vxlan-clash", "error", "flannel.1 is a VXLAN device of VNI 1 and port 8472 too");
    node.inside("ip link del flannel.1");
    assert!(complaints(&node, "vxlan-clash").is_empty());
}

#[test]
fn the_script_of_fixes_can_be_run_and_puts_right_what_commands_can() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.stop("TERM");
    node.inside("echo 1 >/proc/sys/net/ipv4/conf/podwire.1/rp_filter; ip link set eth0 mtu 1400");
    let script = stdout(&doctor(&node, &["--fix"]));
    assert!(script.starts_with("#!/bin/sh\n"), "{script}");
    assert_eq!(node.inside("cat /proc/sys/net/ipv4/conf/podwire.1/rp_filter"), "1\n", "nothing is changed by itself");
    // The machine's own settings are left alone.
    let ours = script.lines().filter(|line| line.contains("podwire.1"));
    node.inside(&ours.collect::<Vec<_>>().join("\n"));
    assert!(complaints(&node, "rp-filter").is_empty() && complaints(&node, "mtu-vxlan").is_empty(), "{script}");
}
