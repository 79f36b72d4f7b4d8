//! The command line and the daemon behind it, as their users meet them: the binary itself, in
//! network namespaces of its own, on the kernel path.

mod dataplane;
mod doctor;
#[path = "../harness/mod.rs"]
mod harness;
mod ipam;
mod node;
mod notes;
mod requests;
mod tuning;
mod uninstall;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use harness::is_root;
use node::Node;

const BINARY: &str = env!("CARGO_BIN_EXE_podwire");

const CONFIG: &str = r#"
[node]
name = "node-a"
uplink = "eth0"
pod_cidrs = ["10.244.1.0/24", "fd00:244:1::/64"]
[cluster]
pod_cidrs = ["10.244.0.0/16", "fd00:244::/32"]
[dataplane]
mode = "kernel"
[probe]
interval_s = 0
[[peers]]
name = "node-b"
underlay = "192.168.1.3"
pod_cidrs = ["10.244.2.0/24", "fd00:244:2::/64"]
"#;

const PEER_C: &str = r#"
[[peers]]
name = "node-c"
underlay = "192.168.1.4"
pod_cidrs = ["10.244.3.0/24"]
"#;

fn podwire(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The texts of a JSON list, or of one member of each of its objects.
fn texts<'a>(list: &'a Value, member: Option<&str>) -> Vec<&'a str> {
    let text = |item: &'a Value| member.map_or(item, |member| &item[member]).as_str().unwrap();
    list.as_array().unwrap().iter().map(text).collect()
}

#[test]
fn every_verb_has_help_with_an_example() {
    let verbs = [
        "",
        "run",
        "config",
        "config check",
        "pods",
        "pods attach",
        "pods detach",
        "pods list",
        "ipam",
        "ipam list",
        "ipam release",
        "ipam check",
        "ipam import",
        "status",
        "stats",
        "top",
        "routes",
        "bench",
        "bench latency",
        "bench reflect",
        "trace",
        "trace drops",
        "doctor",
        "cni",
        "cni install",
        "cni remove",
        "generate",
        "generate man",
        "generate completions",
        "uninstall",
    ];
    for verb in verbs {
        let words: Vec<_> = verb.split_whitespace().chain(["--help"]).collect();
        let help = podwire(&words);
        assert!(help.status.success(), "{verb}");
        assert!(stdout(&help).contains("Example:\n  "), "{verb}: {}", stdout(&help));
    }
}

#[test]
fn man_pages_and_completions_are_what_their_readers_take() {
    let dir = tempfile::tempdir().unwrap();
    assert!(podwire(&["generate", "man", dir.path().to_str().unwrap()]).status.success());
    for page in ["podwire.1", "podwire-cni-install.1"] {
        let Ok(read) = Command::new("man").args(["--local-file", "--warnings"]).arg(dir.path().join(page)).output()
        else {
            return println!("skipped: needs man");
        };
        assert!(read.status.success() && read.stderr.is_empty(), "{page}: {}", stderr(&read));
        assert!(stdout(&read).contains("SYNOPSIS"), "{page}");
    }
    let script = dir.path().join("completions");
    fs::write(&script, podwire(&["generate", "completions", "bash"]).stdout).unwrap();
    let ask =
        r#". "$0" && COMP_WORDS=(podwire doc) COMP_CWORD=1 && _podwire podwire doc podwire && echo "${COMPREPLY[@]}""#;
    let asked = Command::new("bash").args(["-c", ask]).arg(&script).output().unwrap();
    assert_eq!(stdout(&asked), "doctor\n", "{}", stderr(&asked));
}

#[test]
fn misuse_ends_with_2_and_failure_with_1() {
    assert_eq!(podwire(&["fly"]).status.code(), Some(2));
    assert_eq!(podwire(&["pods", "attach"]).status.code(), Some(2));
    assert_eq!(podwire(&["status", "--log", "podwire=loud"]).status.code(), Some(2));
    let bad_address = podwire(&["pods", "attach", "--netns", "/x", "--name", "a", "--ip", "10.0.0.300"]);
    assert_eq!(bad_address.status.code(), Some(2));
    let nobody = podwire(&["status", "--runtime-dir", "/nonexistent"]);
    assert_eq!((nobody.status.code(), nobody.stdout.as_slice()), (Some(1), &b""[..]));
    assert!(stderr(&nobody).contains("/nonexistent/control.sock"), "{}", stderr(&nobody));
    let dir = tempfile::tempdir().unwrap();
    let unreadable = podwire(&["run", "--config", "/nonexistent.toml", "--runtime-dir", dir.path().to_str().unwrap()]);
    assert_eq!(unreadable.status.code(), Some(1));
    assert!(stderr(&unreadable).contains("/nonexistent.toml"), "{}", stderr(&unreadable));
}

#[test]
fn the_log_has_the_level_that_was_asked_for() {
    if !is_root() {
        return;
    }
    let mut node = Node::prepare();
    let asked: [(&[&str], bool); 4] = [
        (&["env", "RUST_LOG=podwire=error"], false),
        (&["env", "RUST_LOG=no=such=filter"], true),
        (&["env", "RUST_LOG=error", "PODWIRE_LOG=podwire=info"], true),
        (&["env"], true),
    ];
    for (wrapper, info) in asked {
        let before = node.log().len();
        node.run_as(wrapper);
        assert!(node.stop("TERM").success());
        let log = node.log().split_off(before);
        assert_eq!(log.contains("podwire starts"), info, "{wrapper:?}\n{log}");
        assert!(!info || log.contains("config="), "values are fields with names: {log}");
    }
}

#[test]
fn a_good_configuration_passes_the_check_and_a_bad_one_shows_all_its_faults() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("podwire.toml");
    let check = |text: &str, format: &str| {
        fs::write(&file, text).unwrap();
        podwire(&["config", "check", file.to_str().unwrap(), "--output", format])
    };
    let good = check(CONFIG, "text");
    assert_eq!((good.status.code(), good.stderr.as_slice()), (Some(0), &b""[..]));
    assert!(stdout(&good).contains("node-a, 1 peer"), "{}", stdout(&good));

    let bad = CONFIG.replace("10.244.1.0/24", "10.244.1.7/24").replace("192.168.1.3", "127.0.0.1");
    let refused = check(&bad, "text");
    assert_eq!((refused.status.code(), refused.stdout.as_slice()), (Some(1), &b""[..]));
    for word in ["node.pod_cidrs", "10.244.1.7/24", "peers[0].underlay", "127.0.0.1"] {
        assert!(stderr(&refused).contains(word), "{word}: {}", stderr(&refused));
    }
    let refused = check(&bad, "json");
    assert_eq!(refused.status.code(), Some(1));
    let verdict: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!(verdict["valid"], false);
    let keys = texts(&verdict["problems"], Some("key"));
    assert!(keys.len() == 2 && keys.contains(&"peers[0].underlay"), "{verdict}");
}

#[test]
fn a_second_daemon_on_the_same_directory_is_refused() {
    if !is_root() {
        return;
    }
    let node = Node::start();
    let second = node.daemon_command().output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("in use by another podwire"), "{}", stderr(&second));
    assert!(node.ask(&["status"]).status.success());
}

#[test]
fn a_second_daemon_in_the_same_namespace_is_refused_and_touches_nothing() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    let elsewhere = node.start_beside();
    let objects = "ip route; ip -6 route; ip neigh show nud permanent; ip -br link";
    let before = node.inside(objects);
    assert!(before.contains("10.244.1."), "{before}");
    let other_dir = elsewhere.config().with_file_name("other");
    let second = node.daemon_command_in(&other_dir).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = stderr(&second);
    assert!(said.contains("network namespace is in use by another podwire") && said.contains("stop it, or"), "{said}");
    assert!(!other_dir.exists());
    assert_eq!(node.inside(objects), before);
    assert!(elsewhere.ask(&["status"]).status.success());

    assert!(!node.stop("KILL").success());
    node.run();
}

#[test]
fn hostile_input_on_the_socket_is_answered_with_an_error_and_the_daemon_lives() {
    if !is_root() {
        return;
    }
    let node = Node::start();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&node.runtime_dir()), mode(&node.socket())), (0o700, 0o600));

    let huge = vec![b'x'; 2048 * 1024];
    let deep = [br#"{"version":2,"request":"#.to_vec(), vec![b'['; 50_000], b"\n".to_vec()].concat();
    let long_name = format!(r#"{{"version":2,"request":{{"pods-detach":{{"name":"{}"}}}}}}"#, "x".repeat(1_100_000));
    let bad_name = br#"{"version":2,"request":{"pods-attach":{"name":"../x","netns":"/x","ifname":"eth0"}}}"#;
    let inputs: [(&[u8], &str); 9] = [
        (b"", "not a request"),
        (b"\n", "not a request"),
        (b"\0\xff\xfe\n", "not a request"),
        (b"{\"version\":2,\"request\":\"status\"\n", "not a request"),
        (b"{\"version\":1,\"request\":\"status\"}\n", "protocol 1"),
        (&huge, "at most 1048576 bytes"),
        (&deep, "not a request"),
        (long_name.as_bytes(), "at most 1048576 bytes"),
        (bad_name, "pod name"),
    ];
    for (input, reason) in inputs {
        let answer = node.throw(input);
        // A reset for what was not read may overtake the answer to an input that is too long.
        let cut_off = answer.is_empty() && input.len() > 1_048_576;
        assert!(cut_off || answer.contains(reason), "{:.60}: {answer}", String::from_utf8_lossy(input));
    }
    assert!(node.ask(&["status"]).status.success());
}

#[test]
fn silent_clients_are_turned_out_and_do_not_keep_others_waiting_for_ever() {
    if !is_root() {
        return;
    }
    let node = Node::start();
    let silent: Vec<_> = (0..32).map(|_| UnixStream::connect(node.socket()).unwrap()).collect();
    let begin = Instant::now();
    assert!(node.ask(&["status"]).status.success());
    assert!(begin.elapsed() < Duration::from_secs(15));
    let mut line = String::new();
    BufReader::new(&silent[0]).read_line(&mut line).unwrap();
    assert!(line.contains("no whole request within"), "{line}");
}

#[test]
fn pods_are_attached_listed_detached_and_survive_a_restart() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    let web = node.attach("web");
    assert_eq!(texts(&web["addresses"], None), ["10.244.1.1", "fd00:244:1::1"]);
    let path = node.pod_netns("db");
    let db = node.json(&["pods", "attach", "--netns", &path, "--name", "db", "--ip", "10.244.1.9"]);
    assert_eq!(texts(&db["addresses"], None), ["10.244.1.9"]);
    for address in ["10.244.1.1", "fd00:244:1::1", "10.244.1.9"] {
        assert!(node.can_ping(address), "{address}\n{}", node.log());
    }

    assert_eq!(node.stop("KILL").code(), None);
    assert!(node.can_ping("10.244.1.1"), "the kernel path needs no daemon");
    node.run();
    let list = node.json(&["pods", "list"]);
    assert_eq!(texts(&list, Some("name")), ["web", "db"]);
    assert!(list.as_array().unwrap().iter().all(|pod| pod["problem"].is_null()), "{list}");
    assert_eq!(texts(&node.attach("third")["addresses"], None), ["10.244.1.2", "fd00:244:1::2"]);

    assert!(node.ask(&["pods", "detach", "--name", "web"]).status.success());
    assert!(!node.can_ping("10.244.1.1"));
    let again = node.ask(&["pods", "detach", "--name", "web"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("no pod is called `web`"), "{}", stderr(&again));
    let fourth = node.attach("fourth");
    assert_eq!(texts(&fourth["addresses"], None), ["10.244.1.3", "fd00:244:1::3"], "not one that has just been left");
    let text = stdout(&node.ask(&["pods", "list"]));
    assert!(text.starts_with("ID  NAME") && text.lines().count() == 4, "{text}");
}

#[test]
fn a_pod_that_cannot_be_attached_is_refused_by_name_and_nothing_is_left() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    let links = node.inside("ip -br link");
    let path = node.pod_netns("other");
    let refusals: [(&[&str], &str); 8] = [
        (&["--netns", &path, "--name", "web"], "`web` is attached already"),
        (&["--netns", &path, "--name", "b", "--ip", "10.244.1.1"], "10.244.1.1 is taken"),
        (&["--netns", &path, "--name", "b", "--ip", "10.244.2.1"], "outside of this node's ranges"),
        (&["--netns", &path, "--name", "b", "--ip", "10.244.1.0"], "reserved"),
        (&["--netns", &path, "--name", "b", "--ifname", "a/b"], "device name `a/b`"),
        (&["--netns", &path, "--name", "b", "--ifname", "lo"], "lo"),
        (&["--netns", "/run/netns/no-such-pod", "--name", "b"], "no-such-pod"),
        (&["--netns", "/etc/passwd", "--name", "b"], "/etc/passwd"),
    ];
    for (args, reason) in refusals {
        let output = node.ask(&[&["pods", "attach"], args].concat());
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stderr(&output).contains(reason), "{args:?}: {}", stderr(&output));
    }
    assert_eq!(texts(&node.json(&["pods", "list"]), Some("name")), ["web"]);
    assert_eq!(node.inside("ip -br link"), links);
}

#[test]
fn a_valid_change_of_the_file_is_applied_and_an_invalid_one_is_refused_and_shown() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    let config = |node: &Node| node.json(&["status"])["config"].clone();
    let refusal = |node: &Node| config(node)["last_error"].as_str().unwrap_or_default().to_owned();
    let route = |node: &Node, prefix: &str| node.inside(&format!("ip route show {prefix}"));
    let (pod_route, peer_route) = (route(&node, "10.244.1.1"), route(&node, "10.244.2.0/24"));
    assert!(peer_route.contains("onlink") && !pod_route.is_empty(), "{peer_route}");
    assert_eq!((config(&node)["generation"].as_u64(), route(&node, "10.244.3.0/24").as_str()), (Some(1), ""));

    node.configure(&format!("{CONFIG}{PEER_C}"));
    node.wait_for("generation 2", |node| config(node)["generation"] == 2);
    assert!(route(&node, "10.244.3.0/24").contains("onlink"), "{}", node.log());

    node.configure(&CONFIG.replace("192.168.1.3", "not an address"));
    node.wait_for("the refusal", |node| refusal(node).contains("peers[0].underlay"));
    assert!(stdout(&node.ask(&["status"])).contains("peers[0].underlay"));
    let status = node.json(&["status"]);
    assert_eq!(
        (&status["config"]["generation"], &texts(&status["peers"], Some("name"))[..]),
        (&json!(2), &["node-b", "node-c"][..])
    );
    assert!(route(&node, "10.244.3.0/24").contains("onlink"));

    node.configure(&CONFIG.replace("10.244.1.0/24", "10.244.9.0/24"));
    node.wait_for("the pod's address to be protected", |node| refusal(node).contains("10.244.1.1"));

    fs::write(node.config(), CONFIG).unwrap();
    node.wait_for("generation 3", |node| config(node)["generation"] == 3);
    assert_eq!((refusal(&node).as_str(), route(&node, "10.244.3.0/24").as_str()), ("", ""));
    assert_eq!((route(&node, "10.244.1.1"), route(&node, "10.244.2.0/24")), (pod_route, peer_route));
}

#[test]
fn a_changed_tunnel_takes_the_place_of_the_old_one() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    node.configure(&format!("{CONFIG}[vxlan]\nvni = 7\nport = 4789\n"));
    node.wait_for("generation 2", |node| node.json(&["status"])["config"]["generation"] == 2);
    let links = node.inside("ip -d -br link show type vxlan; ip -d link show podwire.7");
    assert!(links.contains("vxlan id 7 ") && links.contains("dstport 4789"), "{links}\n{}", node.log());
    assert_eq!(node.inside("ip -br link show type vxlan").lines().count(), 1, "{links}");
    assert!(node.inside("ip route show 10.244.2.0/24").contains("podwire.7"));
    assert!(node.can_ping("10.244.1.1"));
    assert_eq!(node.json(&["status"])["problems"], json!([]));
}

#[test]
fn the_loop_repairs_what_others_take_away() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    let all =
        "ip route; ip -6 route | grep -v fe80; bridge fdb show dev podwire.1 | grep dst; ip neigh show nud permanent";
    let lines = |node: &Node| node.inside(all).lines().count();
    let before = lines(&node);
    for take in ["ip route del 10.244.2.0/24", "ip route del 10.244.1.1", "ip link del podwire.1"] {
        node.inside(take);
        node.wait_for(take, |node| lines(node) == before);
    }
    assert!(node.can_ping("10.244.1.1"));
}

#[test]
fn a_stopped_daemon_leaves_the_wiring_and_removes_its_socket() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    let pod = node.attach("web");
    let wiring = "ip -br link; ip route; ip -6 route; ip neigh show nud permanent";
    let before = node.inside(wiring);
    assert_eq!(node.stop("TERM").code(), Some(0));
    assert!(node.log().contains("the wiring of 1 pod(s) stays"), "{}", node.log());
    assert_eq!(node.inside(wiring), before);
    assert!(texts(&pod["addresses"], None).iter().all(|address| node.can_ping(address)));
    assert!(!node.socket().exists());
    assert_eq!(node.ask(&["status"]).status.code(), Some(1));
}

#[test]
fn a_pod_whose_namespace_is_gone_is_shown_and_can_be_detached() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    node.remove_pod_netns("web");
    node.wait_for("the problem", |node| node.json(&["pods", "list"])[0]["problem"].is_string());
    assert!(node.ask(&["status"]).status.success());
    assert!(node.ask(&["pods", "detach", "--name", "web"]).status.success());
    node.wait_for("no problem", |node| node.json(&["status"])["problems"] == json!([]));
}

#[test]
fn a_pod_that_takes_the_place_of_another_at_once_is_listened_to() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("old");
    // One look finds the old one gone and the new one there.
    let netns = node.pod_netns("new");
    assert!(node.ask(&["pods", "detach", "--name", "old"]).status.success());
    node.json(&["pods", "attach", "--netns", &netns, "--ifname", "eth0", "--name", "new"]);
    sleep(Duration::from_secs(1));
    node.inside_pod("new", "ip route del default");
    let mended = || node.log().contains("pod new: add route 0.0.0.0/0");
    // Before the pods are looked at without being heard of.
    assert!(harness::wait_until(Duration::from_secs(10), mended), "{}", node.log());
}

#[test]
fn a_pod_that_broke_its_own_end_is_mended_at_the_next_start_and_its_own_default_route_is_left() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    node.stop("TERM");
    node.inside_pod("web", "ip -6 route del default");
    node.inside_pod("web", "ip route replace default dev eth0");
    node.run();
    node.wait_for("the problem", |node| node.json(&["pods", "list"])[0]["problem"].is_string());
    let problem = node.json(&["pods", "list"])[0]["problem"].as_str().unwrap_or_default().to_owned();
    assert!(problem.contains("cannot add route 0.0.0.0/0 via 169.254.1.1 dev eth0"), "{problem}");
    assert_eq!(texts(&node.json(&["status"])["problems"], None), [problem]);
    assert!(node.log().contains("pod web: add route ::/0 via fe80::1 dev eth0"), "{}", node.log());
}

#[test]
fn a_pod_outside_of_ranges_that_changed_while_no_daemon_ran_is_shown_until_it_is_detached() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    node.stop("TERM");
    node.configure(&CONFIG.replace("10.244.1.0/24", "10.244.9.0/24"));
    node.run();
    let status = node.json(&["status"]);
    let stray = "pod web has the address 10.244.1.1, which is outside of node.pod_cidrs; detach it";
    assert!(texts(&status["problems"], None).contains(&stray), "{status}");
    assert!(node.log().contains(stray) && !status["problems"].to_string().contains("fd00:244:1::1, which"), "{status}");
    assert!(node.ask(&["pods", "detach", "--name", "web"]).status.success());
    node.wait_for("no problem", |node| node.json(&["status"])["problems"] == json!([]));
}

#[test]
fn status_stats_and_routes_describe_the_kernel_path() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    let status = node.json(&["status"]);
    for (pointer, value) in [
        ("/node", json!("node-a")),
        ("/mode", json!("kernel")),
        ("/dataplane/state", json!("kernel")),
        ("/vxlan/vtep", json!("192.168.1.2")),
        ("/vxlan/mtu", json!(1450)),
        ("/uplink/name", json!("eth0")),
        ("/peers/0/path", json!("kernel")),
        ("/pods", json!(1)),
        ("/problems", json!([])),
    ] {
        assert_eq!(status.pointer(pointer), Some(&value), "{pointer}: {status}");
    }
    let routes = node.json(&["routes"]);
    assert_eq!(texts(&routes, Some("prefix")), ["10.244.2.0/24", "fd00:244:2::/64", "192.168.1.3/32"]);
    assert!(routes[0]["reason"].is_string(), "{routes}");
    assert_eq!(texts(&node.json(&["stats"])["kernel"], Some("device")), ["podwire.1", "eth0"]);
    for verb in ["status", "routes", "stats"] {
        let text = stdout(&node.ask(&[verb]));
        assert!(text.lines().all(|line| line.chars().count() <= 110) && !text.is_empty(), "{verb}: {text}");
    }
}

#[test]
fn a_torn_store_is_kept_aside_and_shown_and_pods_can_be_attached_anew() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    node.stop("TERM");
    fs::write(node.runtime_dir().join("pods.json"), "{\"version\":1,").unwrap();
    node.run();
    let status = node.json(&["status"]);
    assert!(status["problems"].to_string().contains("pods.json"), "{status}");
    assert!(node.runtime_dir().join("pods.json.torn").exists());
    assert!(status["problems"].to_string().contains("pw1 is of a pod that is not remembered"), "{status}");
    assert!(node.inside("ip link").contains("pw1@"));
    let pod = node.attach("new");
    assert!(texts(&pod["addresses"], None).iter().all(|address| node.can_ping(address)), "{}", node.log());
}

#[test]
fn what_an_attach_that_was_cut_short_has_left_is_removed_at_start_and_nothing_else() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    node.stop("KILL");
    let like_ours = |name: &str| format!("ip link add {name} address 0a:58:a9:fe:01:01 type veth peer name x{name}");
    for name in ["pw7", "pwx", "pw", "pw0", "pw+7", "pw99999", "pod7"] {
        node.inside(&like_ours(name));
    }
    node.inside("ip link add pw8 type veth peer name pw8x; ip link add pw9 address 0a:58:a9:fe:01:01 type bridge");
    node.run();
    let left = node.inside("ip -br link");
    assert!(!left.contains("pw7@"), "{left}");
    for name in ["pw1@", "pwx@", "pw@", "pw0@", "pw+7@", "pw99999@", "pod7@", "pw8@", "pw9"] {
        assert!(left.contains(name), "{name} in {left}");
    }
    assert!(node.log().contains("removed what an attach that was cut short has left device=\"pw7\""), "{}", node.log());
    assert!(node.can_ping("10.244.1.1"));
}

#[test]
fn sighup_reads_the_file_again() {
    if !is_root() {
        return;
    }
    let node = Node::start();
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("real.toml");
    fs::write(&target, CONFIG).unwrap();
    fs::remove_file(node.config()).unwrap();
    symlink(&target, node.config()).unwrap();
    let config = |node: &Node| node.json(&["status"])["config"].clone();
    node.wait_for("the link to be followed", |node| config(node)["last_error"].is_null());
    fs::write(&target, format!("{CONFIG}{PEER_C}")).unwrap();
    node.signal("HUP");
    node.wait_for("generation 2", |node| config(node)["generation"] == 2);
}
