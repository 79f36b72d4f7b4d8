//! Connections whose path changes, behind rules that drop what conntrack finds invalid.

use super::harness::Options;
use super::peers::{Client, Protocol};
use super::rules;
use super::scene::{endpoint, scene};

#[test]
fn a_connection_survives_each_change_of_its_path() {
    let Some(mut scene) = scene(Options::ADAPTIVE) else { return };
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
    let mut connection = Client::connect(&client.netns, Protocol::Tcp, to).expect("a connection");
    let mut carries = |when: &str| {
        for _ in 0..20 {
            connection.ask().unwrap_or_else(|e| panic!("{when}: {e}"));
        }
    };
    carries("by the workers");
    for round in 1..=2 {
        scene.cluster.a.kill();
        carries(&format!("after kill {round}"));
        scene.cluster.a.launch();
        carries(&format!("after return {round}"));
    }
}
