//! What is told of the Kubernetes API, on a node that follows a stand-in of it.

use std::thread;
use std::time::Duration;

use podwire::telemetry::Metric;

use crate::api::Api;
use crate::exposition::Exposition;
use crate::harness::{Options, PodwireNode, Prefix, Switch, Wire, is_root, wait_until};

/// Beyond the longest rest between two tries to reach the server.
const PATIENCE: Duration = Duration::from_secs(40);

/// Longer than the daemon lets a snapshot serve.
const SETTLED: Duration = Duration::from_millis(400);

const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/32",
    "Backend": {"Type": "vxlan"}}"#;

/// The metrics that only a node with the API as its source has; [`the_api_is_told_of_as_it_is`] proves each.
pub const METRICS: [Metric; 3] = [Metric::KubernetesState, Metric::KubernetesAge, Metric::KubernetesNodes];

/// Scrapes until what is scraped is as it should be.
#[track_caller]
fn scrape_until(node: &PodwireNode, what: &str, is_so: impl Fn(&Exposition) -> bool) -> Exposition {
    let mut page = Exposition::of(node);
    let found = wait_until(PATIENCE, || {
        thread::sleep(SETTLED);
        page = Exposition::of(node);
        is_so(&page)
    });
    assert!(found, "{what}:\n{}\n{}", page.text, node.log_text());
    page
}

/// The one state that is 1.
fn state(page: &Exposition) -> Vec<&'static str> {
    let mut states = vec!["connecting", "following", "away"];
    states.retain(|state| page.get(Metric::KubernetesState.name(), &[("state", state)]) == Some(1.0));
    states
}

#[test]
fn the_api_is_told_of_as_it_is() {
    if !is_root() {
        return;
    }
    let prefix = Prefix::fresh();
    let switch = Switch::new(&prefix, Wire::default());
    let host = switch.host(&prefix, 'a', 1);
    let api = Api::start(NET_CONF);
    api.listen_in(&host.netns);
    api.set_down(true);
    api.change(|store| store.create(&host.name(), 1, &host.peer(None).pod_cidrs()));
    let options = Options { metrics: true, ..Options::KERNEL };
    let node = PodwireNode::begin(&prefix, host, options, &Api::kubeconfig(None));
    let (age, nodes) = (Metric::KubernetesAge.name(), Metric::KubernetesNodes.name());
    assert!(wait_until(PATIENCE, || node.try_cli("status").status.success()), "{}", node.log_text());

    let page = scrape_until(&node, "never reached", |page| state(page) == ["away"]);
    assert_eq!((page.get(age, &[]), page.get(nodes, &[])), (None, Some(0.0)));

    api.set_down(false);
    let page = scrape_until(&node, "reached", |page| state(page) == ["following"]);
    assert!(page.get(age, &[]) < Some(5.0), "each second brings a bookmark");
    api.change(|store| store.create("other", 2, &[]));
    scrape_until(&node, "two nodes", |page| page.get(nodes, &[]) == Some(2.0));

    api.set_down(true);
    let page = scrape_until(&node, "lost", |page| state(page) == ["away"] && page.get(age, &[]) > Some(2.0));
    assert_eq!(page.get(nodes, &[]), Some(2.0), "what was known stays");
    api.set_down(false);
    scrape_until(&node, "found again", |page| state(page) == ["following"] && page.get(age, &[]) < Some(2.0));
}
