//! Bandwidth that `bandwidth` bounds. As containerd asks for it, a pod has a burst of up to 2^32 bits before the bound is
//! felt (`containerd/go-cni`, `BandWidth` of `namespace_opts.go`; the kubelet's, too).

use std::time::{Duration, Instant};

use podwire::control::api::Path;

use super::harness::{Pod, tcp_transfer, wait_until};
use super::inventory::pods;
use super::scene::{Running, pod_config, scene};

/// One transfer; takes under two seconds at the bound.
const CHUNK_BYTES: usize = 2_000_000;

/// The burst, and what may pass by the bound while it fills.
const BURST_BYTES: usize = 600_000_000;

const BOUND: f64 = 10e6;

/// How long the daemon may take to see that a pod is shaped.
const NOTICE: Duration = Duration::from_secs(5);

/// What a transfer carries, in bits per second.
#[allow(clippy::cast_precision_loss, reason = "a few megabytes")]
fn rate(from: &Pod, to: &Pod) -> f64 {
    let start = Instant::now();
    tcp_transfer(from, to, to.v4.into(), CHUNK_BYTES).unwrap_or_else(|e| panic!("{} -> {}: {e}", from.name, to.name));
    8.0 * CHUNK_BYTES as f64 / start.elapsed().as_secs_f64()
}

/// Uses the burst up, and panics unless what follows is carried at the bound.
#[track_caller]
fn assert_shaped(from: &Pod, to: &Pod) {
    let at_once = (0..BURST_BYTES / CHUNK_BYTES).take_while(|_| rate(from, to) > 3.0 * BOUND).count();
    assert!(at_once < BURST_BYTES / CHUNK_BYTES, "{} -> {} is not bounded", from.name, to.name);
    let rate = rate(from, to);
    assert!((0.5 * BOUND..1.4 * BOUND).contains(&rate), "{} -> {}: {rate} bit/s", from.name, to.name);
}

#[test]
fn bandwidth_is_shaped_in_both_directions() {
    let Some(scene) = scene() else { return };
    let mut config = pod_config(&scene.a, "slow");
    config.annotations =
        ["ingress", "egress"].map(|way| (format!("kubernetes.io/{way}-bandwidth"), "10M".to_owned())).into();
    let slow = Running::start(&scene.a, &config);
    let remote = &scene.cluster.b.pods[0];
    let path = |name: &str| pods(&scene.cluster.a).into_iter().find(|pod| pod.name == name).map(|pod| pod.path);
    let by_kernel = || path(&format!("{}:eth0", slow.sandbox)) == Some(Path::Kernel);
    assert!(wait_until(NOTICE, by_kernel), "what is shaped takes the kernel path");
    assert_shaped(remote, &slow.pod);
    assert_shaped(&slow.pod, remote);
    let free = &scene.cluster.a.pods[0];
    assert_eq!(path(&free.name), Some(Path::Fast));
    let rate = rate(remote, free);
    assert!(rate > 3.0 * BOUND, "a pod without a bound gets {rate} bit/s");
}
