//! What is provoked, and within which bounds pods may notice it.

use std::thread;
use std::time::Duration;

use crate::harness::{Cluster, Options, signal};

/// How long a fault lasts that has a length.
const LENGTH: Duration = Duration::from_millis(500);

/// Something that happens to node `a`, or for `neighbour` to node `b`.
pub struct Fault {
    pub name: &'static str,
    /// For people.
    pub what: &'static str,
    /// The longest gap, in milliseconds, that either direction may have in the data plane's mode.
    pub bound_ms: Option<f64>,
    /// Whether it means something to the kernel path alone.
    pub kernel_too: bool,
    pub provoke: fn(&mut Cluster),
}

impl Fault {
    pub fn applies(&self, options: Options) -> bool {
        !options.is_kernel() || self.kernel_too
    }
}

pub const FAULTS: [Fault; 10] = [
    Fault {
        name: "none",
        what: "nothing, to compare with",
        bound_ms: None,
        kernel_too: true,
        provoke: |_| thread::sleep(LENGTH),
    },
    Fault {
        name: "kill",
        what: "kill -9, and half a second later a new daemon",
        bound_ms: Some(20.0),
        kernel_too: false,
        provoke: |cluster| {
            cluster.a.kill();
            thread::sleep(LENGTH);
            cluster.a.launch();
        },
    },
    Fault {
        name: "abort",
        what: "abort, and half a second later a new daemon",
        bound_ms: Some(20.0),
        kernel_too: false,
        provoke: |cluster| {
            cluster.a.abort();
            thread::sleep(LENGTH);
            cluster.a.launch();
        },
    },
    Fault {
        name: "hang",
        what: "the worker is stuck in a loop for half a second",
        bound_ms: Some(30.0),
        kernel_too: false,
        provoke: |cluster| suffer(cluster, "hang"),
    },
    Fault {
        name: "stop",
        what: "SIGSTOP, and half a second later SIGCONT",
        bound_ms: Some(30.0),
        kernel_too: false,
        provoke: |cluster| {
            signal(cluster.a.daemon(), libc::SIGSTOP);
            thread::sleep(LENGTH);
            signal(cluster.a.daemon(), libc::SIGCONT);
        },
    },
    Fault {
        name: "memory",
        what: "the worker has no packet memory for half a second",
        bound_ms: None,
        kernel_too: false,
        provoke: |cluster| suffer(cluster, "starve"),
    },
    Fault {
        name: "restart",
        what: "SIGTERM, and a new daemon at once, as in an upgrade",
        bound_ms: Some(5.0),
        kernel_too: true,
        provoke: |cluster| {
            cluster.a.stop();
            cluster.a.launch();
        },
    },
    Fault {
        name: "uninstall",
        what: "`podwire uninstall --keep-kernel`, and half a second later a new daemon",
        bound_ms: None,
        kernel_too: false,
        provoke: |cluster| {
            cluster.a.uninstall_data_plane();
            thread::sleep(LENGTH);
            cluster.a.launch();
        },
    },
    Fault {
        name: "flap",
        what: "the uplink goes down for half a second",
        bound_ms: None,
        kernel_too: true,
        provoke: |cluster| {
            cluster.a.host.netns.run("ip link set eth0 down");
            thread::sleep(LENGTH);
            cluster.a.host.netns.run("ip link set eth0 up");
        },
    },
    Fault {
        name: "neighbour",
        what: "the other node's uplink gets another MAC address, and announces it",
        bound_ms: None,
        kernel_too: true,
        provoke: |cluster| {
            let netns = &cluster.b.host.netns;
            netns.sysctl("ipv4/conf/all/arp_notify", "1");
            let last = if netns.mac("eth0").ends_with("b1") { "b2" } else { "b1" };
            netns.run(&format!("ip link set eth0 address 02:00:00:00:0e:{last}"));
        },
    },
];

fn suffer(cluster: &mut Cluster, kind: &str) {
    cluster.a.cli(&format!("fault {kind} --worker 0 --ms {}", LENGTH.as_millis()));
    thread::sleep(LENGTH);
}
