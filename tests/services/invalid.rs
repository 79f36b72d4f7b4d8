//! Connections whose path changes, behind rules that drop what conntrack finds invalid.

use super::harness::Options;
use super::peers::{Client, Protocol};
use super::rules;
use super::scene::{Counts, endpoint, scene};

#[test]
fn a_connection_survives_each_change_of_its_path() {
    survives_each_change(Options { sections: "bypass = false\n", ..Options::ADAPTIVE });
}

#[test]
fn a_connection_survives_each_change_of_its_path_past_the_stack() {
    survives_each_change(Options::ADAPTIVE);
}

fn survives_each_change(options: Options) {
    let Some(mut scene) = scene(options) else { return };
    let _servers = scene.servers();
    let client = scene.cluster.a.pods[0].clone();
    for node in [&scene.cluster.a, &scene.cluster.b] {
        // With kube-proxy's rule, and nothing that translates.
        rules::load(
            &node.host.netns,
            "table inet filter {
                chain forward { type filter hook forward priority 0; ct state invalid counter drop; }
            }",
        );
    }
    let to = endpoint(&scene.cluster.b.pods[0], false);
    let a = &mut scene.cluster.a;
    let connect = || Client::connect(&client.netns, Protocol::Tcp, to).expect("a connection");
    let mut begun_fast = connect();
    a.kill();
    // Of this one conntrack knows the window from the first segment on, so it notices the leaps; unless it goes past.
    let mut begun_in_kernel = connect();
    let mut carries = |when: &str| {
        for (what, connection) in [("begun fast", &mut begun_fast), ("begun in the kernel", &mut begun_in_kernel)] {
            for _ in 0..20 {
                connection.ask().unwrap_or_else(|e| panic!("{what}, {when}: {e}"));
            }
        }
    };
    carries("after the kill");
    for round in 1..=2 {
        a.launch();
        let before = Counts::of(a);
        carries(&format!("after return {round}"));
        assert!(before.since(a).pod_claimed > 0, "by the workers");
        a.kill();
        carries(&format!("after kill {round}"));
    }
}
