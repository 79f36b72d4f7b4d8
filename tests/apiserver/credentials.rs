//! Credentials that are renewed while a node follows the API server.

use std::fs;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Secret};
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::json;

use crate::harness::{Prefix, wait_until};
use crate::kubernetes::{ApiServer, FlannelCluster};

/// The server believes a token for ten seconds after it has looked at it.
const PATIENCE: Duration = Duration::from_secs(60);

const NAMESPACE: &str = "podwire";
const ACCOUNT: &str = "podwire";

/// Whether the server refuses the credentials themselves.
fn is_refused(server: &ApiServer, kubeconfig: &std::path::Path) -> bool {
    let list = async |client| Api::<Node>::all(client).list(&ListParams::default()).await;
    matches!(server.try_ask(kubeconfig, list), Err(kube::Error::Api(status)) if status.code == 401)
}

#[test]
fn a_token_is_renewed_on_disk_and_nothing_is_lost_when_the_old_one_is_void() {
    if !ApiServer::is_available() {
        return;
    }
    let mut cluster = FlannelCluster::start(Prefix::fresh());
    for name in ["first", "second"] {
        let metadata = json!({ "name": name, "namespace": NAMESPACE });
        cluster.server.create(vec![json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata })]);
    }
    cluster.a.stop();
    let kubeconfig = cluster.server.account_bound(NAMESPACE, ACCOUNT, Some("first"));
    cluster.a.launch();
    let old = cluster.prefix.dir().join("old");
    let config = fs::read_to_string(&kubeconfig).expect("a kubeconfig");
    let token = kubeconfig.with_extension("token");
    fs::copy(&token, old.with_extension("token")).expect("a token");
    fs::write(
        &old,
        config.replace(token.to_str().expect("UTF-8"), old.with_extension("token").to_str().expect("UTF-8")),
    )
    .expect("a kubeconfig");
    assert!(!is_refused(&cluster.server, &old));

    cluster.server.account_bound(NAMESPACE, ACCOUNT, Some("second"));
    cluster.server.ask(async |client| {
        Api::<Secret>::namespaced(client, NAMESPACE).delete("first", &DeleteParams::default()).await
    });
    assert!(wait_until(PATIENCE, || is_refused(&cluster.server, &old)), "the old token is still good");
    // Each watch has to be begun anew.
    cluster.server.kill();
    cluster.server.launch();
    let range = cluster.add_stranger("stranger", 77);
    let has_route = || !cluster.a.host.netns.run(&format!("ip route show {range}")).is_empty();
    assert!(wait_until(PATIENCE, has_route), "{}", cluster.a.log_text());
    let status = cluster.a.status();
    // Flannel's nodes have a tunnel of their own for IPv6, which is told of all the time.
    let others: Vec<_> = status.problems.iter().filter(|problem| !problem.starts_with("IPv6 pods of")).collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(status.peers.len(), 3);
}
