//! A cluster, something that someone does to its first node, and what became of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::harness::{Cluster, Netns, Options, Pod, PodwireNode, Prefix, Wire, is_root, pings, wait_until};

/// What is promised,
const PROMISE: Duration = Duration::from_secs(1);
/// and what a machine may take that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Node,
    /// The first pod.
    Pod,
}

/// What is done by a shell, and what the log then says of it, once.
pub type Row<'a> = (Place, &'a str, &'a str);

pub struct Lab {
    pub cluster: Cluster,
}

impl Lab {
    /// `None` where it cannot be built. Node `a` has foreign objects of all kinds.
    pub fn new(options: Options) -> Option<Self> {
        let cluster = is_root().then(|| Cluster::start(Prefix::fresh(), Wire::default(), options))?;
        let lab = Self { cluster };
        lab.place(Place::Node).run_all([
            "ip link add other0 type veth peer name other1",
            "ip link set other0 up",
            "ip link set other1 up",
            "ip address add 10.99.0.1/24 dev other0",
            "ip address add fd00:99::1/64 dev other0 nodad",
            "ip route add 10.98.0.0/16 via 10.99.0.2 proto static",
            "ip route add 10.244.77.0/24 dev other0",
            "ip -6 route add fd00:244:77::/64 dev other0",
            "ip neigh add 10.99.0.7 lladdr 02:00:00:00:00:07 dev other0 nud permanent",
            "ip link add vx7 type vxlan id 7 dev other0 dstport 4799 nolearning",
            "bridge fdb add 02:00:00:00:00:09 dev vx7 dst 10.99.0.9",
            "ip rule add from 10.98.0.0/16 lookup 7",
            "ip route add 10.97.0.0/16 dev other0 table 7",
            "tc qdisc add dev other0 clsact",
        ]);
        lab.place(Place::Pod).run_all(["ip route add 10.96.0.0/16 dev eth0", "ip address add 10.95.0.1/32 dev lo"]);
        Some(lab)
    }

    pub fn node(&self) -> &PodwireNode {
        &self.cluster.a
    }

    pub fn pod(&self) -> &Pod {
        &self.cluster.a.pods[0]
    }

    pub fn place(&self, place: Place) -> &Netns {
        match place {
            Place::Node => &self.cluster.a.host.netns,
            Place::Pod => &self.pod().netns,
        }
    }

    /// Runs a line of shell; it must succeed.
    #[track_caller]
    pub fn shell(&self, place: Place, line: &str) {
        let output = self.place(place).command("sh").args(["-ec", line]).output().expect("nsenter starts");
        assert!(output.status.success(), "`{line}`: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// All that is configured on the node and in its first pod, a line an object.
    pub fn state(&self) -> BTreeSet<String> {
        let places = [(Place::Node, "node"), (Place::Pod, "pod")];
        places
            .into_iter()
            .flat_map(|(at, name)| state(self.place(at)).into_iter().map(move |s| format!("{name}: {s}")))
            .collect()
    }

    /// What the log says from the byte `begin` on.
    pub fn log_since(&self, begin: usize) -> String {
        self.node().log_text().split_off(begin)
    }

    /// Panics unless the first pod and pods of the same node and of the others reach each other.
    #[track_caller]
    pub fn assert_talks(&self, after: &str) {
        let others = [&self.cluster.a.pods[1], &self.cluster.b.pods[0], &self.cluster.c.pods[0]];
        for other in others {
            for (from, to) in [(self.pod(), other), (other, self.pod())] {
                for address in to.addresses() {
                    assert!(pings(from, address, ""), "{} does not reach {address} after {after}", from.name);
                }
            }
        }
    }

    /// Does what each row says, and asserts that all is soon as before, that pods talk, and that the log says it once.
    /// Half of it must be done within the promise, and all of it within our patience.
    #[track_caller]
    pub fn assert_put_right(&self, rows: &[Row<'_>]) {
        self.settle();
        let before = self.state();
        let mut took = Vec::new();
        for (place, spoil, said) in rows {
            let begin = self.node().log_text().len();
            let start = Instant::now();
            self.shell(*place, spoil);
            let mut now = BTreeSet::new();
            let right = wait_until(PATIENCE, || {
                now = self.state();
                now == before && self.log_since(begin).contains(said)
            });
            let log = self.log_since(begin);
            assert!(
                right,
                "`{spoil}` was not put right\nmissing: {:#?}\nnew: {:#?}\n{log}",
                before.difference(&now).collect::<Vec<_>>(),
                now.difference(&before).collect::<Vec<_>>()
            );
            took.push((start.elapsed(), *spoil));
            self.assert_talks(spoil);
            let log = self.log_since(begin);
            assert_eq!(log.matches(said).count(), 1, "`{spoil}` is to be told of once, as {said}\n{log}");
            assert!(!log.contains("ERROR"), "`{spoil}`\n{log}");
        }
        took.sort();
        let (typical, worst) = (took[took.len() / 2].0, took[took.len() - 1]);
        println!("{} rows: typically {typical:?}, at worst {worst:?}", took.len());
        println!("slowest: {:#?}", &took[took.len().saturating_sub(6)..]);
        assert!(typical < PROMISE, "typically {typical:?}");
    }

    /// Waits until nothing changes by itself any more.
    fn settle(&self) {
        let mut last = self.state();
        let settled = wait_until(PATIENCE * 3, || {
            std::thread::sleep(Duration::from_millis(500));
            let now = self.state();
            std::mem::replace(&mut last, now) == last
        });
        assert!(settled, "the node never rests");
    }
}

/// Whether the workers of `node` carry an echo request from `from` and its answer.
pub fn goes_fast(node: &PodwireNode, from: &Pod, to: IpAddr) -> bool {
    let before = node.carried();
    pings(from, to, "-W 1") && node.carried().since(before).fast >= 2
}

/// What the kernel makes by itself, some of it seconds later: link-local addresses and multicast.
const BY_ITSELF: [&str; 5] = ["local fe80:", "anycast fe80:", "fe80::/64", "33:33:", "01:00:5e:"];

/// All that is configured in a namespace, without what differs from run to run, such as indices.
fn state(netns: &Netns) -> BTreeSet<String> {
    let json = |line: &str| -> Vec<Value> { serde_json::from_slice(&netns.output(line).stdout).unwrap_or_default() };
    let mut state = BTreeSet::new();
    for link in json("ip -json -details address show") {
        let name = link["ifname"].as_str().unwrap_or_default();
        let up = link["flags"].as_array().is_some_and(|flags| flags.contains(&"UP".into()));
        let [alias, data] = [&link["ifalias"], &link["linkinfo"]["info_data"]];
        // The hub's are random, and nobody knows them.
        let mac = if name.starts_with("pwhub") { &Value::Null } else { &link["address"] };
        state.insert(format!("{name}: {mac} mtu {} up {up} alias {alias} {data}", link["mtu"]));
        for address in link["addr_info"].as_array().into_iter().flatten().filter(|a| a["scope"] != "link") {
            state.insert(format!("{name}: {} {}/{}", address["family"], address["local"], address["prefixlen"]));
        }
        for setting in SETTINGS {
            let key = setting.replace("DEV", name);
            let value = netns.within(|| std::fs::read_to_string(format!("/proc/sys/net/{key}"))).unwrap_or_default();
            state.insert(format!("{key} = {}", value.trim()));
        }
    }
    let shown = [
        "ip route show table all",
        "ip -6 route show table all",
        "ip neigh show nud permanent",
        "bridge fdb show",
        "ip rule",
        "ip -6 rule",
        "tc qdisc show",
    ];
    for line in shown {
        let printed = String::from_utf8_lossy(&netns.output(line).stdout).into_owned();
        state.extend(printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    state.retain(|line| !BY_ITSELF.iter().any(|part| line.contains(part)));
    state
}

/// The settings of a device, and of all, that tests change.
const SETTINGS: [&str; 10] = [
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "ipv4/conf/all/rp_filter",
    "ipv4/conf/DEV/forwarding",
    "ipv4/conf/DEV/arp_ignore",
    "ipv4/conf/DEV/rp_filter",
    "ipv6/conf/DEV/accept_ra",
    "ipv6/conf/DEV/addr_gen_mode",
    "ipv6/conf/DEV/disable_ipv6",
    "ipv4/conf/default/forwarding",
];
