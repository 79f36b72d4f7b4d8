//! Every metric that is declared tells something true of a live node.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};

use podwire::telemetry::Metric;

use crate::cluster;
use crate::kubernetes;
use crate::proofs::{OF_NODE, OF_PROBES, OF_PROCESS, OF_WORKERS};
use crate::story::Story;

#[test]
fn each_declared_metric_is_proved_on_a_live_node() {
    let rows = || OF_NODE.iter().chain(OF_PROBES).chain(OF_WORKERS).chain(OF_PROCESS);
    let proved: Vec<_> = rows().map(|(metric, _)| metric.name()).collect();
    let declared = Metric::ALL.iter().filter(|metric| !kubernetes::METRICS.contains(metric));
    let declared: BTreeSet<_> = declared.map(|metric| metric.name()).collect();
    assert_eq!(proved.iter().copied().collect::<BTreeSet<_>>(), declared, "a metric has no row");
    assert_eq!(proved.len(), declared.len(), "a metric has two rows");
    let Some(mut cluster) = cluster() else { return };
    let story = Story::of(&mut cluster);
    assert_eq!(story.after.names(), declared, "what is served and what is declared");
    let failed: Vec<_> = rows()
        .map(|(metric, proof)| (metric.name(), proof))
        .filter(|(name, proof)| catch_unwind(AssertUnwindSafe(|| proof(&story, name))).is_err())
        .map(|(name, _)| name)
        .collect();
    assert!(failed.is_empty(), "{failed:?}\n{}", story.after.text);
    assert_promtool_accepts(&story.after.text);
    assert_promtool_accepts(&story.bare.text);
}

/// Panics unless Prometheus' own linter has nothing to say.
fn assert_promtool_accepts(text: &str) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = command.spawn().expect("promtool, of Debian's package prometheus");
    promtool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let output = promtool.wait_with_output().expect("our child");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}
