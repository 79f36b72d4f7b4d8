//! What happens to the cluster, in order.

use std::thread;
use std::time::{Duration, Instant};

use super::findings::{Event, Findings, Followed, Kind, Reach};
use super::harness::{self, Deliveries, Flow, Netns, Pod, PodwireNode, pings, stream_during};
use super::kubernetes::{ApiServer, FlannelCluster};

/// How long a node may take to follow before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked whether a node has followed.
const GLANCE: Duration = Duration::from_millis(2);

/// Echo requests to a pod until one is answered: beside a cluster that starts, a small machine loses one now and then.
const TRIES: usize = 3;

/// The last byte of the strangers' addresses begins here, beyond the hosts'.
const STRANGERS: u8 = 100;

/// Has everything happen while pods of nodes a and b talk.
pub fn tell(cluster: &mut FlannelCluster, rounds: u8) -> Findings {
    let pods = cluster.add_pods();
    cluster.run_flannel();
    let mut story = Story { cluster, pods: pods.clone(), events: Vec::new(), reachability: Vec::new() };
    let streams = stream_during(
        &[Flow::v4(&pods[0], &pods[1]), Flow::v4(&pods[1], &pods[0])],
        &[&pods[0], &pods[1], &pods[2]],
        || story.run(rounds),
    );
    story.end(streams)
}

struct Story<'c> {
    cluster: &'c mut FlannelCluster,
    pods: [Pod; 3],
    events: Vec<Event>,
    reachability: Vec<Reach>,
}

impl Story<'_> {
    fn run(&mut self, rounds: u8) {
        println!("pinging all pairs");
        self.ping_all("at first", None);
        let mut newcomer = self.podwire_joins();
        for round in 0..rounds {
            self.flannel_comes_and_goes(round);
        }
        self.server_fails();
        println!("node-d leaves");
        newcomer.stop();
        let range = self.cluster.server.pod_cidrs(&newcomer.host.name()).swap_remove(0);
        self.cluster.server.delete_node(&newcomer.host.name());
        self.follow("the object of node-d is deleted: no route to its pods", Kind::Goes, &range);
        self.ping_all("at the end", None);
    }

    /// A further podwire node, from its object to a pod of it that the others reach.
    fn podwire_joins(&mut self) -> PodwireNode {
        println!("node-d (podwire) joins");
        self.cluster.server.create_node("node-d");
        let range = self.cluster.server.pod_cidrs("node-d").swap_remove(0);
        let mut node = self.cluster.add_podwire('d', 4);
        self.follow("podwire starts on node-d: a route to its pods", Kind::Starts, &range);
        self.cluster.run_flannel();
        let peers = [self.cluster.a.peer(), self.cluster.b.peer(), self.cluster.c.peer()].to_vec();
        node.await_peers(peers);
        node.add_pod(&self.cluster.prefix, "d1");
        let pod = node.pods[0].clone();
        self.ping_all("with node-d", Some(&pod));
        node
    }

    fn flannel_comes_and_goes(&mut self, round: u8) {
        println!("a Flannel node comes and goes ({})", round + 1);
        let range = self.cluster.add_stranger("node-e", STRANGERS + round);
        self.follow("a Flannel node has published itself: a route", Kind::Comes, &range);
        self.cluster.server.delete_node("node-e");
        self.follow("its object is deleted: no route", Kind::Goes, &range);
    }

    fn server_fails(&mut self) {
        println!("the API server is killed; pods go on");
        self.cluster.server.kill();
        self.ping_all("while the API server is away", None);
        println!("the API server is back");
        self.cluster.server.launch();
        let range = self.cluster.add_stranger("node-f", STRANGERS + 60);
        self.follow("a node comes as the server is back: a route", Kind::AfterOutage, &range);
        self.cluster.server.delete_node("node-f");
        self.follow("its object is deleted: no route", Kind::Goes, &range);
    }

    /// Waits until both podwire nodes have a route to a range, or none where it goes, and notes how long each took.
    fn follow(&mut self, what: &str, kind: Kind, range: &str) {
        let begun = Instant::now();
        let nodes = [&self.cluster.a, &self.cluster.b].map(|node| (node.host.name(), node.host.netns.clone()));
        let followed = thread::scope(|scope| {
            let threads = nodes.map(|(node, netns)| {
                scope.spawn(move || Followed { node, after_ms: watch(&netns, range, kind != Kind::Goes, begun) })
            });
            threads.map(|thread| thread.join().expect("a look at a node")).into()
        });
        self.events.push(Event { what: what.to_owned(), kind, followed });
    }

    /// Each pod pings each other by IPv4, and by IPv6 where both nodes are podwire's.
    fn ping_all(&mut self, when: &'static str, further: Option<&Pod>) {
        let [a, b, c] = &self.pods;
        let pods: Vec<_> = [a, b].into_iter().chain(further).chain([c]).collect();
        for from in &pods {
            for to in pods.iter().filter(|to| to.name != from.name) {
                let is_podwire = from.name != c.name && to.name != c.name;
                for address in to.addresses().into_iter().filter(|address| address.is_ipv4() || is_podwire) {
                    let answered = (0..TRIES).any(|_| pings(from, address, ""));
                    let (from, to) = (from.name.clone(), to.name.clone());
                    self.reachability.push(Reach { when, from, to, address, answered });
                }
            }
        }
    }

    fn end(self, streams: Deliveries) -> Findings {
        let mut findings = Findings {
            podwire: self.cluster.a.status().version,
            kernel: harness::host("uname -r").trim().to_owned(),
            kubernetes: ApiServer::version(),
            events: self.events,
            reachability: self.reachability,
            streams,
            criteria: Vec::new(),
        };
        findings.criteria = findings.judge();
        findings
    }
}

/// When a namespace has a route to a range, or none, in milliseconds after `begun`.
fn watch(netns: &Netns, range: &str, wanted: bool, begun: Instant) -> Option<u64> {
    while begun.elapsed() < PATIENCE {
        let has_route = !netns.run(&format!("ip route show {range}")).is_empty();
        if has_route == wanted {
            return u64::try_from(begun.elapsed().as_millis()).ok();
        }
        thread::sleep(GLANCE);
    }
    None
}
