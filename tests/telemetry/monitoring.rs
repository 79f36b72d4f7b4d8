//! The dashboard and the alerts, as Prometheus itself understands them, on what a live node tells.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::Value;

use crate::cluster;
use crate::exposition::try_get;
use crate::harness::{Cluster, Netns, PodwireNode, tcp_transfer, wait_until};
use crate::kubernetes;

const PATIENCE: Duration = Duration::from_secs(30);

fn in_tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A Prometheus that scrapes a node each second, in the node's namespace.
struct Prometheus {
    netns: Netns,
    process: Child,
}

impl Prometheus {
    const ADDRESS: &str = "127.0.0.1:9090";

    fn start(cluster: &Cluster) -> Self {
        let (dir, netns) = (cluster.prefix.dir().join("prometheus"), cluster.a.host.netns.clone());
        fs::create_dir_all(&dir).expect("a directory");
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [{}]\nscrape_configs:\n  \
             - job_name: podwire\n    static_configs: [{{ targets: ['{}'] }}]\n",
            in_tree("deploy/alerts.yml").display(),
            PodwireNode::METRICS
        );
        fs::write(dir.join("prometheus.yml"), config).expect("write the configuration");
        let log = File::create(dir.join("log")).expect("a log file");
        let mut command = netns.command("prometheus");
        command.arg(format!("--config.file={}", dir.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
        command.arg(format!("--web.listen-address={}", Self::ADDRESS)).stderr(log);
        Self { process: command.spawn().expect("nsenter starts"), netns }
    }

    /// What its API answers.
    fn api(&self, path: &str) -> Option<Value> {
        let at: SocketAddr = Self::ADDRESS.parse().expect("an address");
        let answer = serde_json::from_str::<Value>(&try_get(&self.netns, at, path).ok()?.body).ok()?;
        (answer["status"] == "success").then(|| answer["data"].clone())
    }

    /// The series that a query gives; none when it is refused.
    fn query(&self, query: &str) -> Option<Vec<Value>> {
        let mut path = "/api/v1/query?query=".to_owned();
        query.bytes().for_each(|byte| write!(path, "%{byte:02X}").expect("a string"));
        self.api(&path)?["result"].as_array().cloned()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The metrics that an expression names.
fn metrics_in(expression: &str) -> BTreeSet<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("podwire_") || word.starts_with("process_") || *word == "up").collect()
}

#[test]
fn dashboard_and_alerts_speak_of_what_a_live_node_tells() {
    let Some(cluster) = cluster() else { return };
    let prometheus = Prometheus::start(&cluster);
    let scraped = |n: &str| prometheus.query(&format!("count_over_time(up[1m]) >= {n}")).is_some_and(|r| !r.is_empty());
    assert!(wait_until(PATIENCE, || scraped("2")), "Prometheus scrapes nothing");
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    tcp_transfer(from, to, to.v4.into(), 1 << 20).expect("bytes arrive");
    assert!(wait_until(PATIENCE, || scraped("6")), "Prometheus stopped scraping");

    let board: Value =
        serde_json::from_slice(&fs::read(in_tree("deploy/grafana.json")).expect("it is there")).expect("JSON");
    let targets = board["panels"].as_array().into_iter().flatten().filter_map(|panel| panel["targets"].as_array());
    let expressions: Vec<_> = targets.flatten().filter_map(|target| target["expr"].as_str()).collect();
    assert!(expressions.len() >= 20, "{expressions:?}");
    for expression in expressions {
        let query = expression.replace("$instance", ".*").replace("$__rate_interval", "1m");
        let found = prometheus.query(&query);
        assert!(found.is_some_and(|series| !series.is_empty()), "no data: {query}");
    }

    let known = prometheus.api("/api/v1/label/__name__/values").expect("names");
    let rules = prometheus.api("/api/v1/rules").expect("rules")["groups"][0]["rules"].clone();
    let rules = rules.as_array().expect("rules");
    assert!(rules.len() >= 16, "{rules:?}");
    let tests = fs::read_to_string(in_tree("tests/telemetry/alerts_test.yml")).expect("it is there");
    for rule in rules {
        let (name, query) = (rule["name"].as_str().expect("a name"), rule["query"].as_str().expect("a query"));
        assert!(rule["health"] == "ok" && rule["state"] == "inactive", "on a node that is well: {rule}");
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "{name} has no test");
        let mut names = metrics_in(query);
        assert!(!names.is_empty(), "{query}");
        names.retain(|name| !kubernetes::METRICS.iter().any(|metric| metric.name() == *name));
        assert!(names.iter().all(|name| known.as_array().expect("names").contains(&Value::from(*name))), "{query}");
    }
    cluster.a.host.netns.run("ip link set eth0 down");
    let pending = || prometheus.query("ALERTS{alertname=\"PodwireFastPathLost\"}").is_some_and(|r| !r.is_empty());
    assert!(wait_until(PATIENCE, pending), "no alert for a node without its uplink");
}

#[test]
fn each_alert_fires_when_it_should_and_none_on_a_node_that_is_well() {
    for (verb, file) in [("check", "deploy/alerts.yml"), ("test", "tests/telemetry/alerts_test.yml")] {
        let output = Command::new("promtool").args([verb, "rules"]).arg(in_tree(file)).output().expect("promtool");
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
