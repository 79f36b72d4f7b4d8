//! What the account of `deploy/` may do, and that it may do nothing else: asked of the API server itself.

use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, Error};
use serde_json::{Value, json};

use crate::Site;
use crate::kubernetes::objects;

const NAMESPACE: &str = "podwire";
const ACCOUNT: &str = "podwire";

/// A site with the account of the manifests and a node, and the account's credentials.
fn site() -> Option<(Site, std::path::PathBuf)> {
    let site = Site::new()?;
    site.server.create(objects().into_iter().filter(|object| object["kind"] != "DaemonSet").collect());
    site.server.create_node("node-a");
    let account = site.server.account(NAMESPACE, ACCOUNT);
    Some((site, account))
}

/// A strategic-merge patch, as the daemon sends.
fn patch(value: &Value) -> Patch<&Value> {
    Patch::Strategic(value)
}

#[test]
fn the_account_reads_nodes_and_writes_their_status() {
    let Some((site, account)) = site() else { return };
    site.server
        .try_ask(&account, async |client| {
            let nodes = Api::<Node>::all(client);
            let list = nodes.list(&ListParams::default()).await?;
            assert_eq!(list.items.len(), 1);
            nodes.get("node-a").await?;
            let said = json!({
                "metadata": { "annotations": { "flannel.alpha.coreos.com/kube-subnet-manager": "true" } },
                "spec": { "unschedulable": true },
                "status": { "conditions": [{ "type": "NetworkUnavailable", "status": "False" }] },
            });
            let version = list.metadata.resource_version.expect("a version");
            nodes.patch_status("node-a", &PatchParams::default(), &patch(&said)).await?;
            let mut events = Box::pin(nodes.watch(&WatchParams::default(), &version).await?);
            let Some(WatchEvent::Modified(node)) = events.try_next().await? else { panic!("the change of the node") };
            assert_eq!(node.metadata.annotations.expect("annotations").len(), 1);
            let conditions = node.status.expect("a status").conditions.expect("conditions");
            assert_eq!((&*conditions[0].type_, &*conditions[0].status), ("NetworkUnavailable", "False"));
            assert_eq!(
                node.spec.expect("a spec").unschedulable,
                None,
                "a patch of the status changes the status alone"
            );
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}

/// That a request is refused for want of a right, and for nothing else.
fn assert_forbidden<T>(what: &str, answer: kube::Result<T>) {
    match answer {
        Err(Error::Api(status)) if status.code == 403 => {}
        Err(error) => panic!("to {what}: {error}"),
        Ok(_) => panic!("the account may {what}"),
    }
}

#[test]
fn the_account_may_do_nothing_else() {
    let Some((site, account)) = site() else { return };
    site.server
        .try_ask(&account, async |client| {
            other_nodes(Api::all(client.clone())).await;
            let (all, own) = (Api::<Secret>::all(client.clone()), Api::<Secret>::namespaced(client.clone(), NAMESPACE));
            assert_forbidden("read all secrets", all.list(&ListParams::default()).await);
            assert_forbidden("read its namespace's secrets", own.list(&ListParams::default()).await);
            assert_forbidden("read pods", Api::<Pod>::all(client.clone()).list(&ListParams::default()).await);
            let maps = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
            assert_forbidden("read its own ConfigMap", maps.get("podwire").await);
            let change = json!({ "data": { "podwire.toml": "" } });
            assert_forbidden("change it", maps.patch("podwire", &PatchParams::default(), &patch(&change)).await);
            tokens(client).await;
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}

/// What it may not do to nodes.
async fn other_nodes(nodes: Api<Node>) {
    let (params, cordoned) = (PatchParams::default(), json!({ "spec": { "unschedulable": true } }));
    assert_forbidden("change a node", nodes.patch("node-a", &params, &patch(&cordoned)).await);
    assert_forbidden("delete a node", nodes.delete("node-a", &DeleteParams::default()).await);
    let all = nodes.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
    assert_forbidden("delete all nodes", all);
    let mut node = nodes.get("node-a").await.expect("it may read nodes");
    assert_forbidden("replace a status", nodes.replace_status("node-a", &PostParams::default(), &node).await);
    node.metadata = kube::api::ObjectMeta { name: Some("node-b".to_owned()), ..Default::default() };
    assert_forbidden("create a node", nodes.create(&PostParams::default(), &node).await);
}

/// It cannot become somebody who may do more.
async fn tokens(client: Client) {
    let accounts = Api::<ServiceAccount>::namespaced(client, "kube-system");
    let request = k8s_openapi::api::authentication::v1::TokenRequest::default();
    let token = accounts.create_token_request("node-controller", &PostParams::default(), &request).await;
    assert_forbidden("get another account's token", token);
}
