//! For each metric, what shows that it tells the truth.

use std::time::{SystemTime, UNIX_EPOCH};

use podwire::control::api::{Pod, Probe, Stats};
use podwire::control::view::WorkerStatus;
use podwire::telemetry::Metric;

use crate::exposition::Exposition;
use crate::story::{Story, Told};

type Labels<'a> = &'a [(&'a str, &'a str)];

/// What must hold of a metric of the given name.
pub type Proof = fn(&Story, &str);

/// A row for each metric.
pub const OF_NODE: &[(Metric, Proof)] = &[
    (Metric::BuildInfo, |story, name| story.is(name, &[("version", env!("CARGO_PKG_VERSION"))], 1.0)),
    (Metric::Uptime, |story, name| {
        story.rises(name, &[]);
        story.lies_between(name, &[], |told| told.status.uptime_secs);
    }),
    (Metric::Ready, |story, name| {
        story.is(name, &[], 1.0);
        assert_eq!(story.bare.get(name, &[]), Some(0.0));
    }),
    (Metric::Problems, |story, name| {
        story.is(name, &[], 0.0);
        assert!(story.bare.get(name, &[]) >= Some(1.0));
    }),
    (Metric::ControlResponse, |story, name| {
        let took = story.after.get(name, &[]).expect("a value");
        assert!(took > 0.0 && took < 5.0, "{took}");
        assert_ne!(Some(took), story.before.get(name, &[]), "measured anew");
    }),
    (Metric::ConfigGeneration, |story, name| {
        assert_eq!(story.before.get(name, &[]), Some(1.0));
        story.is(name, &[], 2.0);
    }),
    (Metric::ConfigAccepted, |story, name| {
        let values = [&story.before, &story.refused, &story.after].map(|page| page.get(name, &[]));
        assert_eq!(values, [Some(1.0), Some(0.0), Some(1.0)]);
    }),
    (Metric::MasqueradeState, |story, name| {
        states(&story.before, name, &["off", "on", "failed"], "off");
        states(&story.after, name, &["off", "on", "failed"], "on");
    }),
    (Metric::NatCheck, |story, name| {
        states(&story.after, name, &["none", "lookup", "kernel"], "none");
        states(&story.kernel, name, &["none", "lookup", "kernel"], "lookup");
    }),
    (Metric::UplinkUp, |story, name| {
        story.is(name, &[("device", "eth0")], 1.0);
        assert_eq!(story.down.get(name, &[]), Some(0.0));
    }),
    (Metric::OverlayMtu, |story, name| story.is(name, &[], 1450.0)),
    (Metric::Peers, |story, name| {
        let peers = |page: &Exposition| ["fast", "kernel"].map(|path| page.get(name, &[("path", path)]));
        assert_eq!(peers(&story.after), [Some(2.0), Some(0.0)]);
        assert_eq!(peers(&story.down), [Some(0.0), Some(2.0)]);
    }),
    (Metric::DataplaneState, |story, name| {
        for (page, state) in [(&story.after, "running"), (&story.down, "failed"), (&story.kernel, "kernel")] {
            states(page, name, &["running", "kernel", "failed"], state);
        }
    }),
    (Metric::DataplaneInfo, |story, name| {
        let figures = story.later.status.dataplane.figures.as_ref().expect("the data plane runs");
        story.is(name, &[("mode", "adaptive"), ("xdp", &figures.xdp), ("memory", &figures.memory)], 1.0);
        assert_eq!(story.kernel.get(name, &[]), None, "nothing runs");
    }),
    (Metric::SteeringPackets, |story, name| {
        for program in ["nic_steer", "pod_steer"] {
            let labels = [("program", program), ("verdict", "claimed"), ("path", "fast")];
            story.rises(name, &labels);
            story.lies_between(name, &labels, |told| verdict(&told.stats, program, "claimed"));
            // What hung or was starved had its heartbeat taken for stale.
            story.rises(name, &[("program", program), ("path", "kernel")]);
        }
        let labels = [("program", "pod_steer"), ("verdict", "spoof_ip"), ("path", "dropped")];
        story.lies_between(name, &labels, |told| verdict(&told.stats, "pod_steer", "spoof_ip"));
    }),
    (Metric::Pods, |story, name| {
        story.is(name, &[], 2.0);
    }),
    (Metric::FaultyPods, |story, name| {
        let faulty = story.pods.iter().filter(|pod| pod.problem.is_some()).count();
        assert_eq!(faulty, 0, "{:?}", story.pods);
        story.is(name, &[], 0.0);
    }),
    (Metric::PodPackets, |story, name| {
        of_pods(story, name, |told, pod, from| {
            let traffic = pod_traffic(&told.stats, pod);
            if from { traffic.rx_packets } else { traffic.tx_packets }
        });
    }),
    (Metric::PodBytes, |story, name| {
        of_pods(story, name, |told, pod, from| {
            let traffic = pod_traffic(&told.stats, pod);
            if from { traffic.rx_bytes } else { traffic.tx_bytes }
        });
    }),
    (Metric::PodLost, |story, name| {
        story.lies_between(name, &[("pod", "a1")], |told| pod_traffic(&told.stats, "a1").lost);
    }),
    (Metric::PodInFlight, |story, name| {
        let waiting = |page: &Exposition| page.get(name, &[("pod", "a1")]).expect("a value");
        assert!(story.faulty.iter().any(|page| waiting(page) > 0.0), "claimed for a worker that hangs");
        story.is(name, &[("pod", "a1")], 0.0);
    }),
    (Metric::IpamCapacity, |story, name| {
        story.is(name, &[("range", "10.244.1.0/24")], 254.0);
        assert!(story.after.get(name, &[("range", "fd00:244:1::/64")]) > Some(1e18));
    }),
    (Metric::IpamAddresses, |story, name| {
        let of = |state| story.after.get(name, &[("range", "10.244.1.0/24"), ("state", state)]).expect("a value");
        assert!((of("used") - 2.0).abs() < 0.1, "{}", of("used"));
        assert!((of("used") + of("quarantined") + of("free") - 254.0).abs() < 0.1);
    }),
    (Metric::DevicePackets, |story, name| of_devices(story, name, |row| [row.rx_packets, row.tx_packets], true)),
    (Metric::DeviceBytes, |story, name| of_devices(story, name, |row| [row.rx_bytes, row.tx_bytes], true)),
    (Metric::DeviceDropped, |story, name| of_devices(story, name, |row| [row.rx_dropped, row.tx_dropped], false)),
];

/// A row for each metric of probes.
pub const OF_PROBES: &[(Metric, Proof)] = &[
    (Metric::PeersProbed, |story, name| {
        let peers =
            |page: &Exposition| ["answers", "silent", "unknown"].map(|state| page.get(name, &[("state", state)]));
        assert_eq!(peers(&story.after), [Some(2.0), Some(0.0), Some(0.0)]);
        assert_eq!(peers(&story.down), [Some(0.0), Some(2.0), Some(0.0)]);
        assert_eq!(peers(&story.bare), [None; 3], "there is nothing to probe from");
    }),
    (Metric::PeersIll, |story, name| {
        story.is(name, &[], 0.0);
        assert_eq!(story.down.get(name, &[("cause", "uplink_down")]), Some(2.0));
        assert_eq!(story.down.get(name, &[]), Some(2.0), "no other cause");
    }),
    (Metric::PeerReachable, |story, name| {
        story.is(name, PEER, 1.0);
        assert_eq!(story.down.get(name, PEER), Some(0.0));
    }),
    (Metric::PeerRtt, |story, name| {
        let rtt = story.after.get(name, PEER).expect("a value");
        assert!(rtt > 1e-6 && rtt < 2.0, "{rtt}");
    }),
    (Metric::PeerSent, |story, name| {
        story.rises(name, PEER);
        story.lies_between(name, PEER, |told| probe(told).sent);
    }),
    (Metric::PeerLost, |story, name| {
        story.lies_between(name, PEER, |told| probe(told).lost);
        assert!(story.down.get(name, PEER) > story.after.get(name, PEER), "with the uplink down");
    }),
];

const PEER: Labels<'static> = &[("peer", "node-b")];

fn probe(told: &Told) -> &Probe {
    let peer = told.status.peers.iter().find(|peer| peer.name == "node-b").expect("a peer");
    peer.probe.as_ref().expect("it is probed")
}

/// A row for each metric of workers and their queues.
pub const OF_WORKERS: &[(Metric, Proof)] = &[
    (Metric::WorkerInfo, |story, name| {
        story.is(name, &[("worker", "0"), ("core", &worker(&story.later).core.to_string())], 1.0);
    }),
    (Metric::WorkerPinned, |story, name| {
        story.is(name, WORKER, f64::from(u8::from(worker(&story.later).pinned)));
    }),
    (Metric::WorkerHealth, |story, name| {
        let was =
            |state| story.faulty.iter().any(|page| page.get(name, &[("worker", "0"), ("state", state)]) == Some(1.0));
        assert!(
            was("starved") && was("well"),
            "{:?}",
            story.faulty.iter().map(|page| page.get(name, &[])).collect::<Vec<_>>()
        );
        states(&story.after, name, &["well", "away", "starved"], "well");
    }),
    (Metric::HeartbeatFresh, |story, name| {
        assert!(story.faulty.iter().any(|page| page.get(name, WORKER) == Some(0.0)));
        story.is(name, WORKER, 1.0);
    }),
    (Metric::HeartbeatAge, |story, name| {
        let ages: Vec<_> = story.faulty.iter().map(|page| page.get(name, WORKER)).collect();
        assert!(ages.iter().any(|age| *age > Some(0.2)), "of a worker that hangs: {ages:?}");
        assert!(ages.contains(&None), "of one without a heartbeat: {ages:?}");
        assert!(story.after.get(name, WORKER) < Some(1.2));
    }),
    (Metric::WorkerSeconds, |story, name| {
        for state in ["busy", "idle", "asleep"] {
            story.rises(name, &[("worker", "0"), ("state", state)]);
        }
        let spent = story.gain(name, WORKER);
        let passed = (story.after.at - story.before.at).as_secs_f64();
        // A sleep is added when it is over, after a second at most.
        assert!((spent - passed).abs() < 1.5, "{spent} s of {passed} s");
    }),
    (Metric::PassDuration, |story, name| {
        let [bucket, sum, count] = ["bucket", "sum", "count"].map(|part| format!("{name}_{part}"));
        for (work, state) in [("found", "busy"), ("none", "idle")] {
            let labels = [("worker", "0"), ("work", work)];
            story.rises(&count, &labels);
            let all = story.after.get(&bucket, &[("work", work), ("le", "+Inf")]);
            assert_eq!(all, story.after.get(&count, &labels));
            let seconds = story.after.get("podwire_worker_seconds_total", &[("state", state)]);
            assert_eq!(story.after.get(&sum, &labels), seconds);
        }
        let within = story.after.get(&bucket, &[("work", "found"), ("le", "0.067108864")]);
        let all = story.after.get(&bucket, &[("work", "found"), ("le", "+Inf")]);
        let hung = [&bucket].map(|name| {
            let [all, within] =
                ["+Inf", "0.067108864"].map(|le| story.after.get(name, &[("le", le)]).expect("a value"));
            all - within
        });
        assert!(hung[0] >= 1.0, "the pass that hung took longer than 67 ms");
        assert!(within > all.map(|all| all / 2.0), "most passes did not");
    }),
    (Metric::WorkerPackets, |story, name| {
        for (direction, count) in [
            ("from_wire", "wire_rx_packets"),
            ("to_wire", "wire_tx_packets"),
            ("from_pods", "pod_rx_packets"),
            ("to_pods", "pod_tx_packets"),
        ] {
            story.counts_up(name, &[("direction", direction)], count);
        }
    }),
    (Metric::WorkerBytes, |story, name| {
        for (direction, count) in [
            ("from_wire", "wire_rx_bytes"),
            ("to_wire", "wire_tx_bytes"),
            ("from_pods", "pod_rx_bytes"),
            ("to_pods", "pod_tx_bytes"),
        ] {
            story.counts_up(name, &[("direction", direction)], count);
        }
    }),
    (Metric::WorkerSuperPackets, |story, name| {
        story.counts_up(name, &[("direction", "from_pods")], "pod_rx_super");
        story.counts_up(name, &[("direction", "to_pods")], "pod_tx_super");
    }),
    (Metric::WorkerMerged, |story, name| story.counts_up(name, WORKER, "pod_tx_merged")),
    (Metric::WorkerDropped, |story, name| {
        story.rises(name, WORKER);
        for reason in podwire::counters::DropReason::ALL {
            let labels = [("worker", "0"), ("reason", reason.label())];
            story.lies_between(name, &labels, |told| told.stats.workers[0].tallies.drops[reason.label()]);
        }
    }),
    (Metric::WorkerLost, |story, name| {
        story.counts(name, &[("ring", "hub")], "hub_lost");
        story.counts(name, &[("ring", "uplink")], "uplink_lost");
    }),
    (Metric::WorkerLostClaims, |story, name| story.counts(name, WORKER, "claims_lost")),
    (Metric::WorkerBogus, |story, name| story.counts(name, WORKER, "kernel_bogus")),
    (Metric::WorkerPolls, |story, name| story.counts_up(name, WORKER, "polls")),
    (Metric::WorkerBusyPolls, |story, name| story.counts_up(name, WORKER, "busy_polls")),
    (Metric::WorkerSleeps, |story, name| story.counts_up(name, WORKER, "sleeps")),
    (Metric::WorkerWakeups, |story, name| story.counts_up(name, WORKER, "wakeups")),
    (Metric::WorkerAbsences, |story, name| story.counts_up(name, WORKER, "absences")),
    (Metric::WorkerInTrains, |story, name| story.counts_up(name, WORKER, "pod_tx_trains")),
    (Metric::WorkerStarvations, |story, name| story.counts_up(name, WORKER, "starvations")),
    (Metric::WorkerProbations, |story, name| story.counts_up(name, WORKER, "probations")),
    (Metric::WorkerFrames, |story, name| {
        let withheld = |page: &Exposition| page.get(name, &[("place", "hands")]) > Some(0.0);
        assert!(story.faulty.iter().any(withheld), "none was withheld from the worker");
        story.is(name, WORKER, 8192.0);
        assert!(story.after.get(name, &[("place", "fill")]) > Some(0.0));
    }),
    (Metric::QueuePackets, |story, name| {
        story.rises(name, &[("queue", "0"), ("direction", "from_wire")]);
        story.rises(name, &[("queue", "0"), ("direction", "to_wire")]);
        story.lies_between(name, &[("direction", "from_wire")], |told| told.stats.queues[0].traffic.rx_packets);
        story.lies_between(name, &[("direction", "to_wire")], |told| told.stats.queues[0].traffic.tx_packets);
    }),
    (Metric::QueueBytes, |story, name| {
        story.lies_between(name, &[("direction", "from_wire")], |told| told.stats.queues[0].traffic.rx_bytes);
        story.lies_between(name, &[("direction", "to_wire")], |told| told.stats.queues[0].traffic.tx_bytes);
        let packets = story.gain("podwire_queue_packets_total", &[]);
        assert!(story.gain(name, &[]) > 60.0 * packets, "no packet is shorter");
    }),
    (Metric::QueueLost, |story, name| {
        story.lies_between(name, &[("queue", "0")], |told| told.stats.queues[0].traffic.lost);
    }),
    (Metric::QueueZeroCopy, |story, name| {
        story.is(name, &[("queue", "0")], f64::from(u8::from(story.later.stats.queues[0].zero_copy)));
    }),
];

/// A row for each metric of the daemon's process.
pub const OF_PROCESS: &[(Metric, Proof)] = &[
    (Metric::ProcessCpuSeconds, |story, name| {
        story.rises(name, &[]);
        // The workers are threads of the process.
        assert!(
            story.after.get(name, &[]) > Some(0.5 * story.gain("podwire_worker_seconds_total", &[("state", "busy")]))
        );
    }),
    (Metric::ProcessStartTime, |story, name| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let age = now - story.after.get(name, &[]).expect("a value");
        let uptime = story.after.get("podwire_uptime_seconds", &[]).expect("a value");
        assert!(age > uptime - 2.0 && age < uptime + 60.0, "{age} s");
    }),
    (Metric::ProcessVirtualMemory, |story, name| story.is_near(name, kib(story, "VmSize") << 10, 0.2)),
    (Metric::ProcessResidentMemory, |story, name| story.is_near(name, kib(story, "VmRSS") << 10, 0.2)),
    (Metric::ProcessThreads, |story, name| story.is_near(name, story.process.threads, 0.0)),
    (Metric::ProcessOpenFds, |story, name| story.is_near(name, story.process.fds, 0.1)),
    (Metric::ProcessMaxFds, |story, name| {
        let line = story.process.limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
        let soft = line.split_whitespace().nth(3).and_then(|word| word.parse().ok()).expect("a number");
        story.is_near(name, soft, 0.0);
    }),
];

const WORKER: Labels<'static> = &[("worker", "0")];

impl Story {
    /// By how much a metric rose.
    #[track_caller]
    fn gain(&self, name: &str, labels: Labels<'_>) -> f64 {
        let [before, after] = [&self.before, &self.after].map(|page| page.get(name, labels));
        after.unwrap_or_else(|| panic!("{name}{labels:?} is not there")) - before.unwrap_or(0.0)
    }

    #[track_caller]
    fn rises(&self, name: &str, labels: Labels<'_>) {
        assert!(self.gain(name, labels) > 0.0, "{name}{labels:?} stays at {:?}", self.after.get(name, labels));
    }

    #[track_caller]
    fn is(&self, name: &str, labels: Labels<'_>, value: f64) {
        assert_eq!(self.after.get(name, labels), Some(value), "{name}{labels:?}");
    }

    /// Equal but for one, and a share of itself.
    #[track_caller]
    fn is_near(&self, name: &str, expected: usize, share: f64) {
        let expected = expected.to_string().parse::<f64>().expect("a number");
        let found = self.after.get(name, &[]).expect("a value");
        assert!((found - expected).abs() <= 1.0 + share * expected, "{name}: {found}, not about {expected}");
    }

    /// Between what the command line said before and after.
    #[track_caller]
    fn lies_between(&self, name: &str, labels: Labels<'_>, said: impl Fn(&Told) -> u64) {
        let value = self.after.get(name, labels).unwrap_or_else(|| panic!("{name}{labels:?} is not there"));
        let [low, high] = [&self.earlier, &self.later].map(|told| f64::from(u32::try_from(said(told)).expect("small")));
        assert!(low <= value && value <= high, "{name}{labels:?}: {value}, not {low} to {high}");
    }

    /// Is a worker's count of that name.
    #[track_caller]
    fn counts(&self, name: &str, labels: Labels<'_>, count: &str) {
        self.lies_between(name, labels, |told| told.stats.workers[0].tallies.counts[count]);
    }

    /// Is a worker's count of that name, which rose.
    #[track_caller]
    fn counts_up(&self, name: &str, labels: Labels<'_>, count: &str) {
        self.rises(name, labels);
        self.counts(name, labels, count);
    }
}

#[track_caller]
fn states(page: &Exposition, name: &str, all: &[&str], current: &str) {
    let label = if name.ends_with("check") { "check" } else { "state" };
    for state in all {
        let expected = f64::from(u8::from(*state == current));
        assert_eq!(page.get(name, &[(label, state)]), Some(expected), "{name}: {state}");
    }
}

fn worker(told: &Told) -> &WorkerStatus {
    &told.status.dataplane.figures.as_ref().expect("the data plane runs").workers[0]
}

fn verdict(stats: &Stats, program: &str, verdict: &str) -> u64 {
    let row = stats.verdicts.iter().find(|row| row.program == program && row.verdict == verdict);
    row.expect("a row").packets
}

fn pod_traffic(stats: &Stats, name: &str) -> podwire::control::view::TrafficStatus {
    stats.pods.iter().find(|pod| pod.name == name).expect("a pod").credit.traffic
}

fn of_pods(story: &Story, name: &str, said: fn(&Told, &str, bool) -> u64) {
    let Some(Pod { name: pod, .. }) = story.pods.first() else { panic!("no pod") };
    for (direction, from) in [("from_pod", true), ("to_pod", false)] {
        let labels = [("namespace", ""), ("pod", pod), ("attachment", pod), ("direction", direction)];
        story.rises(name, &labels);
        story.lies_between(name, &labels, |told| said(told, pod, from));
    }
}

fn of_devices(story: &Story, name: &str, pick: fn(&podwire::control::api::DeviceStats) -> [u64; 2], moves: bool) {
    for device in ["eth0", crate::harness::VXLAN_DEVICE] {
        for (at, direction) in ["receive", "transmit"].into_iter().enumerate() {
            let labels = [("device", device), ("direction", direction)];
            story.lies_between(name, &labels, |told| {
                pick(told.stats.kernel.iter().find(|row| row.device == device).expect("a row"))[at]
            });
            if moves {
                story.rises(name, &labels);
            }
        }
    }
}

fn kib(story: &Story, key: &str) -> usize {
    let line = story.process.status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.expect("a line").trim().trim_end_matches(" kB").parse().expect("a number")
}
