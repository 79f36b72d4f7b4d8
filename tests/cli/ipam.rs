//! Addresses as their users meet them: given in turn, resting after their release, excluded, imported from another
//! plugin, and never given twice, whatever happens to the daemon or to its disk.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use podwire::control::notes;
use serde_json::Value;

use crate::harness::{host, is_root};
use crate::node::Node;
use crate::{BINARY, CONFIG, stderr, texts};

/// The first address of a pod as `attach` tells of it.
fn first(pod: &Value) -> String {
    pod["addresses"][0].as_str().unwrap().to_owned()
}

fn detach(node: &Node, name: &str) {
    let output = node.ask(&["pods", "detach", "--name", name]);
    assert!(output.status.success(), "{name}: {}\n{}", stderr(&output), node.log());
}

/// What an attach of `name` to a new namespace is refused with.
fn refusal(node: &mut Node, name: &str, more: &[&str]) -> String {
    let path = node.pod_netns(name);
    let output = node.ask(&[&["pods", "attach", "--netns", &path, "--name", name][..], more].concat());
    assert_eq!(output.status.code(), Some(1), "{name} was attached");
    stderr(&output)
}

/// The row of `podwire ipam list` about an address.
fn row(node: &Node, address: &str) -> Option<Value> {
    let list = node.json(&["ipam", "list"]);
    list["addresses"].as_array().unwrap().iter().find(|row| row["address"] == address).cloned()
}

fn state(node: &Node, address: &str) -> String {
    row(node, address).map_or_else(|| "free".to_owned(), |row| row["state"].as_str().unwrap().to_owned())
}

/// The kinds of what `podwire ipam check` finds.
fn findings(node: &Node) -> Vec<String> {
    let output = node.ask(&["ipam", "check", "--output", "json"]);
    let audit: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", stderr(&output), node.log()));
    let kinds: Vec<_> = texts(&audit["findings"], Some("kind")).into_iter().map(str::to_owned).collect();
    assert_eq!(output.status.code(), Some(i32::from(!kinds.is_empty())), "{audit}");
    kinds
}

#[test]
fn addresses_are_given_in_turn_and_rest_after_their_release() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    assert_eq!(first(&node.attach("a")), "10.244.1.1");
    detach(&node, "a");
    let resting = row(&node, "10.244.1.1").unwrap();
    assert_eq!(resting["state"], "quarantined");
    assert!((1..=30).contains(&resting["free_in_secs"].as_u64().unwrap()), "{resting}");
    assert_eq!(first(&node.attach("b")), "10.244.1.2");
    node.stop("KILL");
    node.run();
    assert_eq!(first(&node.attach("c")), "10.244.1.3", "the turn is remembered");
    assert_eq!(state(&node, "10.244.1.1"), "quarantined", "and so is the rest");
    let path = node.pod_netns("asks");
    node.json(&["pods", "attach", "--netns", &path, "--name", "asks", "--ip", "10.244.1.1"]);
    assert_eq!(row(&node, "10.244.1.1").unwrap()["pod"], "asks");
    let ranges = node.json(&["ipam", "list"])["ranges"].clone();
    assert_eq!((ranges[0]["used"].as_u64(), ranges[0]["free"].as_u64()), (Some(3), Some(251)), "{ranges}");
    assert_eq!(findings(&node), [] as [&str; 0]);
}

#[test]
fn an_exhausted_range_says_when_the_next_address_is_free_and_a_release_makes_it_so() {
    if !is_root() {
        return;
    }
    let mut node = Node::prepare();
    node.configure(&CONFIG.replace("\"10.244.1.0/24\", \"fd00:244:1::/64\"", "\"10.244.1.0/30\""));
    node.run();
    node.attach("a");
    node.attach("b");
    let full = refusal(&mut node, "c", &[]);
    assert!(full.contains("no address is free in 10.244.1.0/30") && !full.contains("quarantine"), "{full}");
    detach(&node, "a");
    let full = refusal(&mut node, "d", &[]);
    assert!(full.contains("leaves quarantine in"), "{full}");

    let live = node.ask(&["ipam", "release", "10.244.1.2"]);
    assert!(stderr(&live).contains("podwire pods detach --name b"), "{}", stderr(&live));
    let free = node.ask(&["ipam", "release", "10.244.1.7"]);
    assert!(stderr(&free).contains("neither held nor in quarantine"), "{}", stderr(&free));
    assert_eq!(node.json(&["ipam", "release", "10.244.1.1"])["was"], "quarantined");
    assert_eq!(first(&node.attach("e")), "10.244.1.1");

    node.configure(
        &fs::read_to_string(node.config()).unwrap().replace("[[peers]]", "[ipam]\nquarantine_s = 0\n[[peers]]"),
    );
    node.wait_for("generation 2", |node| node.json(&["status"])["config"]["generation"] == 2);
    detach(&node, "e");
    assert_eq!(first(&node.attach("f")), "10.244.1.1", "nothing rests");
}

#[test]
fn excluded_addresses_are_given_to_no_new_pod_and_old_ones_stay() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("a");
    let exclude = "[ipam]\nexclude = [\"10.244.1.1-10.244.1.9\", \"fd00:244:1::/120\"]\n[[peers]]";
    node.configure(&CONFIG.replace("[[peers]]", exclude));
    node.wait_for("generation 2", |node| node.json(&["status"])["config"]["generation"] == 2);
    assert!(node.can_ping("10.244.1.1"));
    assert_eq!(node.json(&["status"])["problems"].as_array().unwrap().len(), 0);
    let next = node.attach("b");
    assert_eq!(texts(&next["addresses"], None), ["10.244.1.10", "fd00:244:1::100"]);
    let refused = refusal(&mut node, "c", &["--ip", "10.244.1.5"]);
    assert!(refused.contains("excluded by ipam.exclude (10.244.1.1-10.244.1.9)"), "{refused}");
    let list = node.json(&["ipam", "list"]);
    assert_eq!(list["ranges"][0]["capacity"], 245);
    assert_eq!(findings(&node), [] as [&str; 0]);
}

/// A directory as host-local writes it.
fn host_local(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn addresses_of_another_plugin_are_held_until_their_container_is_removed() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("a");
    let dir = host_local(&[
        ("10.244.1.1", "taken\r\neth0"),
        ("10.244.1.2", "c2\r\neth0"),
        ("fd00:244:1::2", "c2\r\neth0"),
        ("10.244.1.3", "c3"),
        ("10.244.1.4", "c4\r\neth0"),
        ("10.244.1.5", "c5\r\neth0"),
        ("10.9.9.9", "c9\r\neth0"),
        ("not-an-address", "c9\r\neth0"),
        ("last_reserved_ip.0", "10.244.1.3"),
        ("lock", ""),
    ]);
    let path = dir.path().to_str().unwrap().to_owned();
    let import = |node: &Node| node.json(&["ipam", "import", &path]);
    let imported = import(&node);
    let expected = ["10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5", "fd00:244:1::2"];
    assert_eq!(texts(&imported["held"], None), expected);
    let skipped = &imported["skipped"];
    assert_eq!(texts(skipped, Some("what")), ["not-an-address", "10.9.9.9", "10.244.1.1"], "{skipped}");
    let again = import(&node);
    assert_eq!((texts(&again["held"], None).len(), texts(&again["known"], None).len()), (0, 5));

    node.stop("KILL");
    node.run();
    assert_eq!(first(&node.attach("b")), "10.244.1.6");
    let refused = refusal(&mut node, "c", &["--ip", "10.244.1.3"]);
    assert!(refused.contains("10.244.1.3 is taken"), "{refused}");
    detach(&node, "c2:eth0");
    for address in ["10.244.1.2", "fd00:244:1::2"] {
        assert_eq!(state(&node, address), "quarantined");
    }
    assert_eq!(node.ask(&["pods", "detach", "--name", "c2:eth0"]).status.code(), Some(1), "it is gone");
    assert_eq!(node.json(&["ipam", "release", "10.244.1.3"])["was"], "held");
    assert_eq!(state(&node, "10.244.1.3"), "free");
    notes::leave(&node.runtime_dir(), "c4:eth0").unwrap();
    node.wait_for("the note", |node| state(node, "10.244.1.4") == "quarantined");
    let network = dir.path().file_name().unwrap().to_str().unwrap();
    let collect = format!(r#"{{"version":2,"request":{{"pods-collect":{{"network":"{network}","keep":[]}}}}}}"#) + "\n";
    assert!(node.throw(collect.as_bytes()).contains(r#""removed":["c5:eth0"]"#));
    assert_eq!(findings(&node), [] as [&str; 0]);

    let nowhere = node.ask(&["ipam", "import", "/nonexistent/cbr0"]);
    assert!(nowhere.status.code() == Some(1) && stderr(&nowhere).contains("/nonexistent/cbr0"), "{}", stderr(&nowhere));
}

#[test]
fn a_check_names_what_is_not_as_it_is_remembered() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    for name in ["a", "b", "c"] {
        node.attach(name);
    }
    assert_eq!(findings(&node), [] as [&str; 0]);
    node.inside_pod("a", "ip link set eth0 name other");
    assert_eq!(findings(&node), ["wiring"]);

    // Two pods with one address, and a file that says less than is remembered.
    node.stop("KILL");
    let file = node.runtime_dir().join("pods.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("10.244.1.3", "10.244.1.2")).unwrap();
    node.run();
    fs::write(&file, text).unwrap();
    let found = findings(&node);
    for kind in ["store", "duplicate", "wiring"] {
        assert!(found.iter().any(|found| found == kind), "{kind}: {found:?}");
    }
    let said = node.ask(&["ipam", "check"]);
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("10.244.1.2 is of b and of c"), "{said}");
}

#[test]
fn a_torn_store_costs_no_live_pod_its_address_or_its_network() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("a");
    node.attach("b");
    node.stop("KILL");
    let file = node.runtime_dir().join("pods.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, &text[..text.len() / 2]).unwrap();
    node.run();
    for _ in 0..2 {
        assert!(
            node.can_ping("10.244.1.1") && node.can_ping("10.244.1.2") && node.can_ping("fd00:244:1::1"),
            "{}",
            node.log()
        );
        assert_eq!(findings(&node), ["unknown-device", "unknown-device"]);
        assert_eq!(state(&node, "10.244.1.1"), "unknown");
        node.stop("KILL");
        node.run();
    }
    let c = node.attach("c");
    assert_eq!((first(&c).as_str(), c["host_ifname"].as_str()), ("10.244.1.3", Some("pw3")));
    let refused = refusal(&mut node, "d", &["--ip", "10.244.1.2"]);
    assert!(refused.contains("10.244.1.2 is taken"), "{refused}");
    node.stop("KILL");
    node.run();
    assert!(node.can_ping("10.244.1.1") && node.can_ping("10.244.1.3"), "{}", node.log());

    node.remove_pod_netns("a");
    node.inside("ip link del pw2");
    node.wait_for("the last forgotten pod to go", |node| findings(node).is_empty());
    assert_eq!(state(&node, "10.244.1.1"), "free");
    node.inside("ip link add pw9 address 0a:58:a9:fe:01:01 type veth peer name pw9x");
    node.stop("KILL");
    node.run();
    assert_eq!(node.inside("ip -br link show pw9"), "", "none can have been forgotten now");
    assert!(node.can_ping("10.244.1.3"));
}

#[test]
fn a_reboot_frees_all_addresses_and_does_not_begin_anew() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("a");
    node.attach("b");
    detach(&node, "b");
    node.stop("KILL");
    node.inside("ip link del pw1");
    let file = node.runtime_dir().join("pods.json");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    fs::write(&file, fs::read_to_string(&file).unwrap().replace(boot.trim(), "of-before")).unwrap();
    node.run();
    assert_eq!(node.json(&["ipam", "list"])["addresses"].as_array().unwrap().len(), 0);
    assert_eq!(findings(&node), [] as [&str; 0]);
    assert_eq!(first(&node.attach("c")), "10.244.1.3");
}

/// A small disk for a daemon's runtime directory.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        host(&format!("mount -t tmpfs -o size=64k,mode=0700 podwire-test {}", at.display()));
        Self(at.to_owned())
    }

    /// Takes all that is free.
    fn fill(&self) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.0.join("filler")).unwrap();
        for size in [4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        host(&format!("umount -l {}", self.0.display()));
    }
}

#[test]
fn a_full_disk_refuses_pods_and_loses_none() {
    if !is_root() {
        return;
    }
    let mut node = Node::prepare();
    let disk = Disk::mount(&node.runtime_dir());
    node.run();
    node.attach("a");
    let links = node.inside("ip -br link; ip route; ip neigh show nud permanent");
    disk.fill();
    let refused = refusal(&mut node, "b", &[]);
    assert!(refused.contains("pods.json") && refused.contains("No space left"), "{refused}");
    assert_eq!(node.inside("ip -br link; ip route; ip neigh show nud permanent"), links, "nothing is left of it");
    assert!(!node.runtime_dir().join("pods.json.new").exists(), "it would take what is left");
    let detached = node.ask(&["pods", "detach", "--name", "a"]);
    assert!(stderr(&detached).contains("No space left"), "{}", stderr(&detached));
    assert_eq!(texts(&node.json(&["pods", "list"]), Some("name")), ["a"], "its address is still taken");
    node.stop("KILL");
    disk.free();
    node.run();
    assert_eq!(texts(&node.json(&["pods", "list"]), Some("name")), ["a"]);
    detach(&node, "a");
    assert_eq!(first(&node.attach("c")), "10.244.1.2");
    assert_eq!(findings(&node), [] as [&str; 0]);
}

#[test]
fn a_daemon_killed_while_pods_come_and_go_gives_no_address_twice_and_leaves_nothing() {
    const PODS: usize = 6;
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    let names: Vec<String> = (0..PODS).map(|pod| format!("p{pod}")).collect();
    let paths: Vec<String> = names.iter().map(|name| node.pod_netns(name)).collect();
    let dir = node.runtime_dir().to_str().unwrap().to_owned();
    for round in 0..8_u64 {
        let clients = names.iter().zip(&paths).map(|(name, path)| {
            let mut command = Command::new(BINARY);
            command.args(["pods", "attach", "--netns", path, "--name", name, "--runtime-dir", &dir]);
            (name, command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
        });
        let clients: Vec<_> = clients.collect();
        // Anywhere from the first to the last of them.
        sleep(Duration::from_millis(5 + round * 9));
        node.stop("KILL");
        let done: Vec<&String> = clients
            .into_iter()
            .filter_map(|(name, mut client)| client.wait().unwrap().success().then_some(name))
            .collect();
        node.run();
        let pods = node.json(&["pods", "list"]);
        let remembered = texts(&pods, Some("name"));
        assert!(done.iter().all(|name| remembered.contains(&name.as_str())), "{done:?} {remembered:?}\n{}", node.log());
        let devices: BTreeSet<_> = texts(&pods, Some("host_ifname")).into_iter().map(str::to_owned).collect();
        let there = node.inside("ip -o link show type veth | grep -o 'pw[0-9]*@' | tr -d @");
        assert_eq!(there.lines().map(str::to_owned).collect::<BTreeSet<_>>(), devices, "round {round}\n{}", node.log());
        let addresses: Vec<String> = pods.as_array().unwrap().iter().map(first).collect();
        assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len(), "{addresses:?}");
        assert_eq!(findings(&node), [] as [&str; 0], "round {round}\n{}", node.log());
        for name in remembered {
            detach(&node, name);
        }
    }
    assert_eq!(node.inside("ip -o link show type veth | grep -c pw"), "0\n");
}

#[test]
fn a_del_by_cni_frees_what_a_container_has_from_another_plugin() {
    if !is_root() {
        return;
    }
    let node = Node::start();
    let dir = host_local(&[("10.244.1.9", "c9\r\neth0")]);
    node.json(&["ipam", "import", dir.path().to_str().unwrap()]);
    assert_eq!(state(&node, "10.244.1.9"), "held");
    let del = r#"{"version":2,"request":{"pods-detach":{"name":"c9:eth0","network":"podwire"}}}"#.to_owned() + "\n";
    assert!(node.throw(del.as_bytes()).contains(r#""found":true"#));
    assert_eq!(state(&node, "10.244.1.9"), "quarantined");
}
