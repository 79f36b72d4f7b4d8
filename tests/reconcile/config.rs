//! What changes in the configuration file.

use std::fs;
use std::time::Duration;

use super::harness::{Options, Peer, wait_until};
use super::lab::{Lab, goes_fast};

#[test]
fn a_peer_that_gets_another_name_mac_or_range_is_followed() {
    let Some(mut lab) = Lab::new(Options::ADAPTIVE) else { return };
    let (b, c) = (lab.cluster.b.host.peer(None), lab.cluster.c.peer());
    let to = lab.cluster.c.pods[0].v4.into();

    let renamed = Peer { name: "formerly-c".to_owned(), ..c.clone() };
    lab.cluster.a.set_peers(vec![b.clone(), renamed]);
    assert!(goes_fast(&lab.cluster.a, lab.pod(), to));

    lab.cluster.c.host.netns.run("ip link set flannel.1 address 02:00:00:00:fe:33");
    let moved = Peer { vtep_mac: Some("02:00:00:00:fe:33".to_owned()), ..c.clone() };
    lab.cluster.a.set_peers(vec![b.clone(), moved]);
    // A new MAC costs a device its neighbours.
    lab.cluster.c.connect(&lab.cluster.a.peer());
    assert!(goes_fast(&lab.cluster.a, lab.pod(), to));

    let elsewhere = Peer { index: 33, ..c.clone() };
    lab.cluster.a.set_peers(vec![b.clone(), elsewhere]);
    let routes = lab.cluster.a.host.netns.run("ip route");
    assert!(routes.contains("10.244.33.0/24") && !routes.contains("10.244.3.0/24"), "{routes}");
}

#[test]
fn nonsense_in_the_file_is_refused_once_and_the_old_configuration_stays() {
    let Some(lab) = Lab::new(Options::ADAPTIVE) else { return };
    let (node, file) = (lab.node(), lab.node().config());
    let good = fs::read_to_string(&file).expect("the configuration");
    let (before, generation) = (lab.state(), node.status().config.generation);
    for _ in 0..3 {
        fs::write(&file, "peers = [[nonsense").expect("write the file");
        assert!(wait_until(Duration::from_secs(3), || node.status().config.last_error.is_some()), "it was taken");
    }
    assert_eq!(lab.state(), before);
    lab.assert_talks("nonsense");
    fs::write(&file, good).expect("write the file");
    assert!(wait_until(Duration::from_secs(3), || node.status().config.last_error.is_none()), "it stays refused");
    assert_eq!(node.status().config.generation, generation);
    assert_eq!(node.log_text().matches("the configuration was refused").count(), 1, "{}", node.log_text());
}
