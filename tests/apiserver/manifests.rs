//! The manifests of `deploy/`, and whether somebody who reads them has understood every word.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{DynamicObject, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Site;
use crate::kubernetes::{api_of, flannel_role, object, objects};

/// The paths of what was written and is not what came back.
fn lost(written: &Value, back: &Value, path: &str) -> Vec<String> {
    match written {
        Value::Object(fields) => {
            fields.iter().flat_map(|(key, value)| lost(value, &back[key], &format!("{path}.{key}"))).collect()
        }
        Value::Array(items) => {
            let paths = items.iter().enumerate().map(|(at, item)| (item, &back[at], format!("{path}[{at}]")));
            paths.flat_map(|(item, back, path)| lost(item, back, &path)).collect()
        }
        _ if written == back => Vec::new(),
        _ => vec![format!("{path}: {written} became {back}")],
    }
}

/// What is lost of an object when the types of the Kubernetes API read it.
fn misread(object: &Value) -> Result<Vec<String>, serde_json::Error> {
    fn by<T: DeserializeOwned + Serialize>(object: &Value) -> Result<Value, serde_json::Error> {
        serde_json::to_value(serde_json::from_value::<T>(object.clone())?)
    }
    let kind = object["kind"].as_str().expect("a kind");
    let back = match kind {
        "Namespace" => by::<Namespace>(object),
        "ServiceAccount" => by::<ServiceAccount>(object),
        "ClusterRole" => by::<ClusterRole>(object),
        "ClusterRoleBinding" => by::<ClusterRoleBinding>(object),
        "Role" => by::<Role>(object),
        "RoleBinding" => by::<RoleBinding>(object),
        "ConfigMap" => by::<ConfigMap>(object),
        "DaemonSet" => by::<DaemonSet>(object),
        _ => panic!("{kind} is not known here"),
    };
    Ok(lost(object, &back?, kind))
}

#[test]
fn every_field_is_one_of_the_kubernetes_api() {
    for object in objects().into_iter().chain(flannel_role()) {
        let said = misread(&object).unwrap_or_else(|e| panic!("{}: {e}", object["kind"]));
        assert_eq!(said, [""; 0]);
    }
}

#[test]
fn a_misspelt_field_and_a_wrong_type_are_noticed() {
    let mut set = object("DaemonSet");
    let container = &mut set["spec"]["template"]["spec"]["containers"][0];
    container["securityContext"]["readOnlyRootFileSystem"] = true.into();
    let [said] = &misread(&set).unwrap()[..] else { panic!("one field is misspelt") };
    assert!(
        said.starts_with("DaemonSet.spec.template.spec.containers[0].securityContext.readOnlyRootFileSystem"),
        "{said}"
    );
    set["spec"]["template"]["spec"]["hostNetwork"] = "yes".into();
    assert!(misread(&set).is_err());
}

#[test]
fn the_api_server_takes_every_field() {
    let Some(site) = Site::new() else { return };
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    for written in objects() {
        let object: DynamicObject = serde_json::from_value(written.clone()).expect("an object");
        // Dry runs leave no namespace that others could be in.
        let is_namespace = written["kind"] == "Namespace";
        let params = if is_namespace { PostParams::default() } else { dry.clone() };
        let back = site.server.ask(async |client| api_of(client, &object).create(&params, &object).await);
        let back = serde_json::to_value(back).expect("JSON");
        assert_eq!(lost(&written, &back, ""), [""; 0]);
    }
}

#[test]
fn the_daemon_takes_the_configuration_of_the_manifests() {
    let map = object("ConfigMap");
    let text = map["data"]["podwire.toml"].as_str().expect("a configuration");
    let config = podwire::config::Config::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let source = config.kubernetes.expect("the API as the source");
    let set = object("DaemonSet");
    let mounts = set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"].as_array().expect("mounts").clone();
    let file = source.net_conf.expect("a file");
    assert!(mounts.iter().any(|mount| file.parent().is_some_and(|dir| mount["mountPath"] == *dir.to_str().unwrap())));
    let net_conf =
        map["data"][file.file_name().and_then(|name| name.to_str()).expect("a name")].as_str().expect("a file");
    let net_conf: Value = serde_json::from_str(net_conf).expect("JSON");
    assert_eq!(net_conf["Backend"]["Type"], "vxlan");
}
