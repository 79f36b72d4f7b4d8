//! What must not fill the log, and what must not be lost in noise.

use std::thread;
use std::time::{Duration, Instant};

use super::harness::{Options, wait_until};
use super::lab::{Lab, Place};

#[test]
fn a_fight_over_an_object_is_won_and_does_not_fill_the_log() {
    let Some(lab) = Lab::new(Options::KERNEL) else { return };
    let (end, mut deleted) = (Instant::now() + Duration::from_secs(6), 0);
    while Instant::now() < end {
        let output = lab.place(Place::Node).output("ip route del 10.244.2.0/24");
        deleted += u32::from(output.status.success());
        thread::sleep(Duration::from_millis(20));
    }
    assert!(deleted > 10, "it came back {deleted} times only");
    let is_back = || lab.place(Place::Node).run("ip route").contains("10.244.2.0/24 via 10.244.2.0 dev podwire.1");
    assert!(wait_until(Duration::from_secs(3), is_back), "{}", lab.node().log_text());
    lab.assert_talks("the fight");
    let log = lab.node().log_text();
    assert_eq!(log.matches("add route 10.244.2.0/24").count(), 4, "{log}");
    assert_eq!(log.matches("somebody keeps changing it: made 4 times in").count(), 1, "{log}");
}

#[test]
fn what_happens_in_a_flood_of_notifications_is_noticed() {
    let Some(lab) = Lab::new(Options::KERNEL) else { return };
    let batch = lab.cluster.prefix.dir().join("flood");
    let route = |action: &str, n: u32| format!("route {action} 10.93.{}.{}/32 dev other0\n", n / 250, n % 250);
    let lines: String = ["add", "del"].iter().flat_map(|action| (0..5000).map(move |n| route(action, n))).collect();
    std::fs::write(&batch, lines).expect("a file");
    for (place, spoil, said) in [
        (Place::Node, "ip route del 10.244.2.0/24", "add route 10.244.2.0/24"),
        (Place::Node, "ip neigh del 10.244.2.0 dev podwire.1", "add neighbour 10.244.2.0"),
        (Place::Pod, "ip route del default", "pod a1: add route 0.0.0.0/0"),
    ] {
        let begin = lab.node().log_text().len();
        let mut floods: Vec<_> = [Place::Node, Place::Pod]
            .map(|place| {
                let netns = lab.place(place);
                netns.output("ip link add other0 type veth peer name other1");
                netns.run("ip link set other0 up");
                let batch = batch.to_str().expect("a path");
                netns
                    .command("sh")
                    .args(["-c", &format!("for i in 1 2 3 4 5 6; do ip -force -batch {batch}; done")])
                    .spawn()
                    .expect("sh starts")
            })
            .into();
        thread::sleep(Duration::from_millis(200));
        lab.shell(place, spoil);
        let noticed = wait_until(Duration::from_secs(3), || lab.log_since(begin).contains(said));
        let flooded = floods.iter_mut().all(|flood| matches!(flood.try_wait(), Ok(None)));
        for mut flood in floods {
            flood.kill().ok();
            flood.wait().ok();
        }
        assert!(noticed, "`{spoil}` was lost\n{}", lab.log_since(begin));
        assert!(flooded, "the flood was over before");
    }
    lab.assert_talks("the flood");
}
