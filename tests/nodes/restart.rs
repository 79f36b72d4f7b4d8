//! What outlives the daemon, and what the next one makes of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use libbpf_rs::query::LinkInfo;
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, Program as Loaded};
use podwire::control::api::{DataplaneState, PodStats};
use podwire::steer::{Program, Verdict};

use super::cluster;
use super::fairness::assert_all_pods_send_at_once;
use super::harness::{
    Cluster, Options, Pod, PodwireNode, Prefix, Wire, assert_all_pairs_talk, is_root, pings, udp_echo, wait_until,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// The links of a node's programs, by the names of their pins.
fn links(node: &PodwireNode) -> BTreeMap<String, LinkInfo> {
    let entries = fs::read_dir(node.pins().join("links")).expect("pinned links").map(|entry| entry.expect("a pin"));
    let name = |path: &fs::DirEntry| path.file_name().into_string().expect("a name");
    entries.map(|entry| (name(&entry), Link::open(entry.path()).expect("a link").info().expect("its state"))).collect()
}

/// What identifies each link, whatever it runs.
fn link_ids(node: &PodwireNode) -> BTreeMap<String, u32> {
    links(node).into_iter().map(|(name, link)| (name, link.id)).collect()
}

fn programs(node: &PodwireNode) -> Vec<u32> {
    links(node).into_values().map(|link| link.prog_id).collect()
}

/// How many frames got a verdict, whether or not a daemon runs.
fn count(node: &PodwireNode, program: Program, verdict: Verdict) -> u64 {
    let verdicts = MapHandle::from_pinned_path(node.pins().join("maps/verdicts")).expect("pinned counters");
    let cpus = verdicts.lookup_percpu(&(program as u32).to_ne_bytes(), MapFlags::ANY).expect("counters").expect("one");
    let word = |cpu: &Vec<u8>| u64::from_ne_bytes(cpu[8 * verdict as usize..][..8].try_into().expect("eight bytes"));
    cpus.iter().map(word).sum()
}

/// Sends numbered messages back and forth over one connection while `event` happens and for a while after.
fn converse(from: &Pod, to: &Pod, destination: IpAddr, event: impl FnOnce()) {
    let (answered, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let listener = to.netns.within(|| TcpListener::bind((destination, 0))).expect("listen in the pod");
    let target = listener.local_addr().expect("an address");
    thread::spawn(move || echo(&listener));
    thread::scope(|scope| {
        let _end = Raise(&over);
        scope.spawn(|| {
            let stream = from.netns.within(|| TcpStream::connect_timeout(&target, PATIENCE)).expect("connect");
            ask(stream, &answered, &over);
        });
        let progress = |when: &str| {
            let before = answered.load(Ordering::Relaxed);
            let done = wait_until(PATIENCE, || answered.load(Ordering::Relaxed) >= before + 20);
            assert!(done, "the connection stands still {when}");
        };
        progress("before the event");
        event();
        progress("after the event");
        thread::sleep(Duration::from_millis(300));
        progress("later");
    });
}

/// Raises a flag when dropped, so that whoever waits for it ends, even by a failed assertion.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn echo(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().expect("a connection");
    stream.set_nodelay(true).expect("an option");
    let mut message = [0; 512];
    while stream.read_exact(&mut message).is_ok() {
        stream.write_all(&message).expect("the connection holds");
    }
}

fn ask(mut stream: TcpStream, answered: &AtomicU64, over: &AtomicBool) {
    stream.set_nodelay(true).expect("an option");
    stream.set_read_timeout(Some(PATIENCE)).expect("an option");
    for number in 0_u64.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let mut message = [0; 512];
        message[..8].copy_from_slice(&number.to_be_bytes());
        stream.write_all(&message).expect("the connection holds");
        let mut answer = [0; 512];
        stream.read_exact(&mut answer).expect("the connection holds");
        assert_eq!(answer, message);
        answered.store(number + 1, Ordering::Relaxed);
    }
}

/// Panics unless the workers carry packets of each pod of `node`, soon: on a busy machine they may be late.
#[track_caller]
fn assert_pods_go_fast(node: &PodwireNode, to: IpAddr) {
    for pod in &node.pods {
        let goes_fast = || {
            let before = node.carried();
            pings(pod, to, "") && node.carried().since(before).fast >= 2
        };
        assert!(wait_until(PATIENCE, goes_fast), "{} is not on the fast path", pod.name);
    }
}

fn a_connection_survives(end: impl Fn(&mut PodwireNode) + Sync) {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (from, to) = (cluster.a.pods[0].clone(), cluster.b.pods[0].clone());
    let (before, programs_before) = (link_ids(&cluster.a), programs(&cluster.a));
    assert_eq!(before.len(), 6, "uplink, tunnel, both ends of the hub and two pods: {before:?}");
    let (pods, claimed) = (cluster.a.cli("pods list --output json"), count(&cluster.a, Program::Pod, Verdict::Claimed));
    for destination in to.addresses() {
        converse(&from, &to, destination, || {
            end(&mut cluster.a);
            assert_eq!(link_ids(&cluster.a), before, "all stays attached while no daemon runs");
            cluster.a.launch();
        });
        assert_eq!(link_ids(&cluster.a), before, "nothing is attached anew");
    }
    assert!(programs(&cluster.a).iter().all(|program| !programs_before.contains(program)), "the programs are new");
    assert_eq!(cluster.a.cli("pods list --output json"), pods);
    let again = count(&cluster.a, Program::Pod, Verdict::Claimed);
    assert!(again > claimed, "the counters go on: {claimed}, {again}");
    assert_pods_go_fast(&cluster.a, to.v4.into());
    assert!(count(&cluster.a, Program::Pod, Verdict::Claimed) > again);
    assert_all_pairs_talk(&cluster.pods());
}

#[test]
fn a_connection_survives_sigterm_and_a_start() {
    a_connection_survives(PodwireNode::stop);
}

#[test]
fn a_connection_survives_a_kill_and_a_start() {
    a_connection_survives(PodwireNode::kill);
}

#[test]
fn a_change_of_settings_attaches_nothing_anew() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (from, to) = (cluster.a.pods[0].clone(), cluster.b.pods[0].clone());
    let (links, programs_before) = (link_ids(&cluster.a), programs(&cluster.a));
    converse(&from, &to, to.v4.into(), || cluster.a.set_options(Options::BUSY));
    assert_eq!((link_ids(&cluster.a), programs(&cluster.a)), (links, programs_before));
}

/// A datagram socket in each pod, and one that answers them all.
struct Questions {
    sockets: Vec<UdpSocket>,
    target: SocketAddr,
    answers: Vec<u32>,
}

impl Questions {
    fn new(pods: &[Pod], target: SocketAddr) -> Self {
        let open = |pod: &Pod| {
            let socket = pod.netns.within(|| UdpSocket::bind((pod.v4, 0))).expect("bind in the pod");
            socket.set_nonblocking(true).expect("an option");
            socket
        };
        Self { sockets: pods.iter().map(open).collect(), target, answers: vec![0; pods.len()] }
    }

    /// Each pod asks once, a few at a time: the one that answers may have as many frames on their way as its quota is.
    fn ask_all(&mut self) {
        for few in self.sockets.chunks(16) {
            for socket in few {
                socket.send_to(b"?", self.target).expect("sent");
            }
            thread::sleep(Duration::from_millis(3));
        }
        let before = self.answered();
        wait_until(Duration::from_millis(200), || {
            for (socket, answers) in self.sockets.iter().zip(&mut self.answers) {
                *answers += u32::from(socket.recv(&mut [0; 8]).is_ok());
            }
            self.answered() >= before + self.sockets.len()
        });
    }

    fn answered(&self) -> usize {
        self.answers.iter().sum::<u32>() as usize
    }
}

/// Asks and asks while `event` happens; returns how often.
fn ask_during(questions: &mut Questions, event: impl FnOnce()) -> u32 {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = Raise(&over);
        let asking = scope.spawn(|| {
            let rounds = 1..=u32::MAX;
            rounds.into_iter().take_while(|_| !over.load(Ordering::Relaxed)).inspect(|_| questions.ask_all()).count()
        });
        thread::sleep(Duration::from_millis(300));
        event();
        drop(end);
        u32::try_from(asking.join().expect("the questions are asked")).expect("few rounds")
    })
}

#[test]
fn a_restart_under_250_pods_with_traffic_keeps_them_all() {
    const PODS: usize = 250;
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let Cluster { a, b, prefix, .. } = &mut cluster;
    while a.pods.len() < PODS {
        a.add_pod(prefix, &format!("many{}", a.pods.len()));
    }
    let before = (link_ids(a), a.cli("pods list --output json"));
    let server = b.pods[0].netns.within(|| UdpSocket::bind((b.pods[0].v4, 0))).expect("bind in the pod");
    let mut questions = Questions::new(&a.pods, server.local_addr().expect("an address"));
    thread::spawn(move || {
        while let Ok((_, asker)) = server.recv_from(&mut [0; 8]) {
            server.send_to(b"!", asker).expect("answered");
        }
    });
    let rounds = ask_during(&mut questions, || {
        a.stop();
        a.launch();
    });
    let lost: Vec<_> = questions.answers.iter().map(|answers| rounds - answers).collect();
    assert!(rounds >= 5 && lost.iter().all(|lost| *lost <= 2), "of {rounds} rounds: {lost:?}");
    assert_eq!((link_ids(a), a.cli("pods list --output json")), before);
    let all_go_fast = || {
        questions.ask_all();
        let pods = a.stats().pods;
        let both_ways = |pod: &PodStats| pod.credit.traffic.rx_packets > 0 && pod.credit.traffic.tx_packets > 0;
        pods.len() == PODS && pods.iter().all(both_ways)
    };
    assert!(wait_until(PATIENCE, all_go_fast), "{:?}", a.stats().pods);
    assert_all_pods_send_at_once(&cluster);
}

#[test]
fn pods_of_a_node_are_redirected_and_held_to_their_addresses_while_the_daemon_is_dead() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    cluster.a.kill();
    let node = &cluster.a;
    let [from, to] = [&node.pods[0], &node.pods[1]];
    let (local, spoofed) = (count(node, Program::Pod, Verdict::Local), count(node, Program::Pod, Verdict::SpoofIp));
    for destination in to.addresses() {
        // ICMP is left to the kernel path when nobody says whether anything is translated.
        udp_echo(from, to, destination, &[1, 2, 3]).expect("answers");
    }
    assert!(count(node, Program::Pod, Verdict::Local) >= local + 12, "by the kernel path");
    from.netns.run("ip address add 10.244.1.250/32 dev eth0");
    assert!(!pings(from, to.v4.into(), "-W 1 -I 10.244.1.250"));
    assert!(count(node, Program::Pod, Verdict::SpoofIp) > spoofed);
    from.netns.run("ip address delete 10.244.1.250/32 dev eth0");
    cluster.a.launch();
}

#[test]
fn an_address_that_changes_hands_while_no_worker_runs_leads_to_the_new_pod() {
    // There are two addresses of each family, and what one pod gives up the next one gets.
    let sections = "[ipam]\nquarantine_s = 0\nexclude = [\"10.244.1.3-10.244.1.254\", \"fd00:244:1::3-fd00:244:1:0:ffff:ffff:ffff:fffe\"]\n";
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    cluster.a.set_options(Options { sections, ..Options::ADAPTIVE });
    let Cluster { a, prefix, .. } = &mut cluster;
    for restart in [false, true] {
        a.host.netns.run("ip link set eth0 down");
        if restart {
            a.kill();
            a.spawn();
        }
        assert!(wait_until(PATIENCE, || a.state() == Some(DataplaneState::Failed)));
        let old = a.remove_pod();
        a.add_pod(prefix, &format!("heir{restart}"));
        let [first, new] = [&a.pods[0], &a.pods[1]];
        assert_eq!(new.addresses(), old.addresses());
        let local = count(a, Program::Pod, Verdict::Local);
        for destination in new.addresses() {
            udp_echo(first, new, destination, &[1]).unwrap_or_else(|e| panic!("{destination}: {e}"));
        }
        assert!(count(a, Program::Pod, Verdict::Local) >= local + 4, "by the kernel path");
        a.host.netns.run("ip link set eth0 up");
        assert!(wait_until(PATIENCE, || a.state() == Some(DataplaneState::Running)));
    }
}

#[test]
fn kernel_mode_leaves_no_program_pin_or_hub() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let is_clean = |node: &PodwireNode, programs: &[u32]| {
        assert!(!node.pins().exists());
        assert!(!node.host.netns.output("ip link show pwhub0").status.success(), "the hub stays");
        let attached = node.host.netns.run("bpftool net show");
        assert!(!attached.contains("_steer") && !attached.contains("hub_d"), "{attached}");
        let unloaded = || programs.iter().all(|id| Loaded::fd_from_id(*id).is_err());
        assert!(wait_until(PATIENCE, unloaded), "programs stay loaded");
    };
    let programs_before = programs(&cluster.a);
    cluster.a.set_options(Options::KERNEL);
    is_clean(&cluster.a, &programs_before);
    assert_all_pairs_talk(&cluster.pods());
    // what a daemon that was killed has left goes too
    let programs_before = programs(&cluster.b);
    cluster.b.kill();
    cluster.b.launch_with(Options::KERNEL);
    is_clean(&cluster.b, &programs_before);
    assert_all_pairs_talk(&cluster.pods());
}

#[test]
fn a_program_that_somebody_detaches_is_attached_again_and_that_is_said_once() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let node = &cluster.a;
    let told = || node.log_text().matches("was not attached to ").count();
    for (nth, (name, link)) in (1..).zip(links(node)) {
        super::harness::host(&format!("bpftool link detach id {}", link.id));
        let again = || links(node).get(&name).is_some_and(|now| now.id != link.id);
        assert!(wait_until(Duration::from_secs(3), again), "{name} stays detached");
        assert!(wait_until(PATIENCE, || told() == nth), "{}", node.log_text());
    }
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(told(), links(node).len(), "{}", node.log_text());
    assert_pods_go_fast(node, cluster.b.pods[0].v4.into());
}

#[test]
fn nodes_pins_go_with_their_namespaces() {
    if !is_root() {
        return;
    }
    let prefix = Prefix::fresh();
    let netns = prefix.netns("pinned");
    let pins = podwire::steer::Pins::open(netns.cookie()).expect("a BPF file system");
    let dir = format!("/sys/fs/bpf/podwire/{}", netns.cookie());
    assert!(fs::exists(&dir).expect("it can be looked at"));
    drop((pins, prefix));
    assert!(!fs::exists(&dir).expect("it can be looked at"), "the laboratory leaves pins");
}
