//! A podwire node, a Flannel node that stays as it is, and thousands that the API knows of only: their underlay
//! addresses lie behind a router, as in any large cluster.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use podwire::control::api::{ChangeTimes, Path};
use podwire::control::netlink::{MAIN_TABLE, Netlink};
use podwire::control::plan::PROTOCOL;
use serde_json::{Value, json};

use crate::api::Api;
use crate::harness::{
    self, Host, KernelNode, Options, Pod, PodwireNode, Prefix, Switch, Wire, thread_time, wait_until,
};

const PREFIX: &str = "pwscale";

const NET_CONF: &str = r#"{"Network": "10.0.0.0/8", "EnableIPv6": true, "IPv6Network": "fd00:244::/32",
    "Backend": {"Type": "vxlan"}}"#;

/// How long the daemon may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often it is looked whether a route is there.
const GLANCE: Duration = Duration::from_micros(200);

/// The ranges of the strangers begin here; a host of the laboratory has another one.
const FIRST_V4: u32 = 0x0a00_0000;
const FIRST_V6: u32 = 0x1000;

/// Fields are dropped in this order: daemons first, the namespaces last.
pub struct Site {
    node: Option<PodwireNode>,
    /// Until the daemon starts.
    host: Option<Host>,
    far: KernelNode,
    pub api: Api,
    strangers: u32,
    /// Those that churn has deleted.
    away: BTreeSet<u32>,
    /// Next to be changed.
    next: u32,
    /// The place of the next new range.
    range: u32,
    _router: Host,
    _switch: Switch,
    prefix: Prefix,
}

impl Site {
    /// A cluster of `strangers` nodes and two, and no daemon.
    pub fn new(strangers: u16) -> Self {
        let prefix = Prefix::named(PREFIX);
        let switch = Switch::new(&prefix, Wire::default());
        let [host, far, router] =
            [('a', 1), ('c', 3), ('g', 253)].map(|(letter, index)| switch.host(&prefix, letter, index));
        host.netns.run("ip route add 172.16.0.0/12 via 192.168.1.254 dev eth0");
        let mut far = KernelNode::start(far);
        far.add_pod(&prefix, "c1");
        let api = Api::start(NET_CONF);
        api.listen_in(&host.netns);
        let strangers = u32::from(strangers);
        let mut site = Self {
            node: None,
            host: Some(host),
            far,
            api,
            strangers,
            away: BTreeSet::new(),
            next: 0,
            range: strangers,
            _router: router,
            _switch: switch,
            prefix,
        };
        site.register();
        site
    }

    fn register(&mut self) {
        let host = self.host.as_ref().expect("no daemon runs yet");
        let (own, far) = (host.peer(None), self.far.peer());
        self.api.change(|store| {
            store.create(&own.name, 1, &own.pod_cidrs());
            store.create(&far.name, 1, &far.pod_cidrs()[..1]);
            let mac = far.vtep_mac.as_deref().expect("a kernel node has one");
            store.annotate(&far.name, &annotations(&far.underlay, mac, false));
        });
        for stranger in 0..self.strangers {
            self.create(stranger, stranger);
        }
    }

    /// Starts the daemon; returns how long it took from the list's first page to the routes in the kernel, and until all
    /// peers are on the fast path.
    pub fn start(&mut self) -> (Duration, Duration) {
        let host = self.host.take().expect("no daemon runs yet");
        let node = PodwireNode::begin(&self.prefix, host, Options::ADAPTIVE, &Api::kubeconfig(None));
        let node = self.node.insert(node);
        assert!(wait_until(PATIENCE, || self.api.store().listed_at.is_some()), "{}", node.log_text());
        let listed_at = self.api.store().listed_at.expect("a list");
        let kernel = self.settle_since(listed_at);
        let node = self.node.as_mut().expect("it was started");
        let is_fast = || node.status().peers.iter().filter(|peer| peer.path == Path::Fast).count();
        let wanted = usize::try_from(self.strangers).expect("small") + 1;
        assert!(wait_until(PATIENCE, || is_fast() == wanted), "{}", node.log_text());
        let tables = listed_at.elapsed();
        self.far.connect(&node.peer());
        node.add_pod(&self.prefix, "a1");
        (kernel, tables)
    }

    /// Gives a node another range; returns how long it takes until the kernel has the route.
    pub fn move_range(&mut self) -> Duration {
        let stranger = self.turn();
        let range = self.new_range();
        let cidrs = ranges(range);
        let device = self.node().host.netns.link(crate::harness::VXLAN_DEVICE)["ifindex"].as_u64();
        let address = IpAddr::from(Ipv4Addr::from(v4_range(range) + 9));
        let begun = Instant::now();
        self.api.change(|store| {
            store.edit(&name(stranger), |node| node["spec"] = json!({ "podCIDR": cidrs[0], "podCIDRs": cidrs }));
        });
        self.node().host.netns.within(|| {
            let mut netlink = Netlink::open().expect("a socket");
            loop {
                let found = netlink.lookup(address).expect("an answer");
                if found.is_some_and(|found| Some(u64::from(found.device.0)) == device) {
                    return begun.elapsed();
                }
                assert!(begun.elapsed() < PATIENCE, "no route to {address}");
                thread::sleep(GLANCE);
            }
        })
    }

    /// One change of churn: a node goes, one comes back, or one has another MAC.
    pub fn churn(&mut self) {
        let stranger = self.turn();
        match stranger % 3 {
            0 => {
                self.api.change(|store| store.delete(&name(stranger)));
                self.away.insert(stranger);
            }
            1 => match self.away.pop_first() {
                Some(back) => {
                    let range = self.new_range();
                    self.create(back, range);
                }
                None => self.change_mac(stranger),
            },
            _ => self.change_mac(stranger),
        }
    }

    fn change_mac(&self, stranger: u32) {
        let annotations = annotations(&underlay(stranger), &mac(stranger, 0x06), true);
        self.api.change(|store| store.annotate(&name(stranger), &annotations));
    }

    /// Waits until the kernel has as many routes as there are nodes; returns how long that took.
    pub fn settle(&self) -> Duration {
        self.settle_since(Instant::now())
    }

    fn settle_since(&self, begun: Instant) -> Duration {
        let node = self.node();
        // Two of each stranger, one of the Flannel node, and two of the own ranges.
        let present = usize::try_from(self.strangers).expect("small") - self.away.len();
        node.host.netns.within(|| {
            let mut netlink = Netlink::open().expect("a socket");
            let with_gateway = |netlink: &mut Netlink| {
                let routes = netlink.routes(MAIN_TABLE, PROTOCOL).unwrap_or_default();
                routes
                    .iter()
                    .filter(|route| route.destination.prefix_len() <= 64 && route.destination.prefix_len() != 32)
                    .count()
            };
            while with_gateway(&mut netlink) != 2 * present + 3 {
                assert!(begun.elapsed() < PATIENCE, "the kernel does not follow\n{}", node.log_text());
                thread::sleep(Duration::from_millis(5));
            }
            begun.elapsed()
        })
    }

    /// A pod of the node, and one of the Flannel node.
    pub fn pods(&self) -> [Pod; 2] {
        [self.node().pods[0].clone(), self.far.pods[0].clone()]
    }

    pub fn change_times(&self) -> ChangeTimes {
        self.node().status().kubernetes.expect("a source").changes
    }

    /// Memory of the daemon that is in RAM.
    pub fn resident_kib(&self) -> u64 {
        harness::resident_kib(self.node().daemon())
    }

    /// How long the daemon's threads have run.
    pub fn cpu_time(&self) -> Duration {
        thread_time(self.node().daemon(), "")
    }

    pub fn node(&self) -> &PodwireNode {
        self.node.as_ref().expect("the daemon was started")
    }

    /// The next node that is there.
    fn turn(&mut self) -> u32 {
        loop {
            // A step that has no divisor in common with the likely numbers of nodes.
            self.next = (self.next + 997) % self.strangers;
            if !self.away.contains(&self.next) {
                return self.next;
            }
        }
    }

    fn new_range(&mut self) -> u32 {
        self.range += 1;
        self.range
    }

    fn create(&self, stranger: u32, range: u32) {
        self.api.change(|store| {
            store.create(&name(stranger), 2, &ranges(range));
            store.annotate(&name(stranger), &annotations(&underlay(stranger), &mac(stranger, 0x02), true));
        });
    }
}

fn name(stranger: u32) -> String {
    format!("stranger-{stranger:05}")
}

fn underlay(stranger: u32) -> IpAddr {
    Ipv4Addr::from(0xac10_0100 + stranger).into()
}

fn mac(stranger: u32, first: u8) -> String {
    let [.., a, b, c] = stranger.to_be_bytes();
    format!("{first:02x}:77:00:{a:02x}:{b:02x}:{c:02x}")
}

/// Far below that of the laboratory, 10.244.0.0/16.
fn v4_range(range: u32) -> u32 {
    FIRST_V4 + (range << 8)
}

fn ranges(range: u32) -> Vec<String> {
    vec![format!("{}/24", Ipv4Addr::from(v4_range(range))), format!("fd00:244:{:x}::/64", FIRST_V6 + range)]
}

/// What a node publishes.
fn annotations(public_ip: &IpAddr, vtep_mac: &str, is_podwire: bool) -> Value {
    let mut said = json!({
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"{vtep_mac}"}}"#),
        "flannel.alpha.coreos.com/public-ip": public_ip.to_string(),
    });
    if is_podwire {
        said["podwire.io/version"] = json!(env!("CARGO_PKG_VERSION"));
    }
    said
}
