//! The way to the API server, and what is read of it besides nodes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hyper::Request as HttpRequest;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use kube::core::params::GetParams;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::error::{SourceError, chain};
use super::net_conf::NetConf;
use crate::config::Kubernetes;

/// How long one answer may take, with the waits that the server asks for (`Retry-After`).
pub const ANSWER: Duration = Duration::from_secs(60);

/// Where Flannel's manifests put its configuration, now and formerly, and under which key.
const CONFIG_MAP: &str = "kube-flannel-cfg";
const NAMESPACES: [&str; 2] = ["kube-flannel", "kube-system"];
const KEY: &str = "net-conf.json";

/// A client, and the address of its server. Credentials are read anew from their files.
pub async fn connect(settings: &Kubernetes) -> Result<(Client, String), SourceError> {
    let config = match &settings.kubeconfig {
        Some(path) => {
            let unfit = |error: kube::config::KubeconfigError| SourceError::Kubeconfig(path.clone(), chain(&error));
            let kubeconfig = Kubeconfig::read_from(path).map_err(unfit)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(unfit)?
        }
        None => Config::incluster().map_err(|error| SourceError::NotInCluster(chain(&error)))?,
    };
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|error| SourceError::Client(chain(&error)))?;
    Ok((client, server))
}

/// Asks, and reads the answer.
pub async fn request<T: DeserializeOwned>(
    client: &Client,
    what: &'static str,
    request: HttpRequest<Vec<u8>>,
) -> Result<T, SourceError> {
    let answer =
        timeout(ANSWER, client.request(request)).await.map_err(|_| SourceError::Late { what, limit: ANSWER })?;
    answer.map_err(|error| SourceError::of_answer(what, &error))
}

/// What all nodes were told by Flannel's configuration, and its text.
pub async fn net_conf(client: &Client, file: Option<&Path>) -> Result<(NetConf, String), SourceError> {
    let (place, text) = match file {
        Some(path) => {
            let place = path.display().to_string();
            let text = fs::read_to_string(path).map_err(|error| SourceError::NetConfFile(path.to_owned(), error))?;
            (place, text)
        }
        None => config_map(client).await?,
    };
    let net_conf = NetConf::parse(&text).map_err(|error| SourceError::NetConf(place, error))?;
    Ok((net_conf, text))
}

async fn config_map(client: &Client) -> Result<(String, String), SourceError> {
    let mut refusal = String::new();
    for namespace in NAMESPACES {
        let maps = Request::new(format!("/api/v1/namespaces/{namespace}/configmaps"));
        let get = maps.get(CONFIG_MAP, &GetParams::default()).map_err(|error| SourceError::Client(chain(&error)))?;
        match request::<ConfigMap>(client, "read the ConfigMap kube-flannel-cfg", get).await {
            Ok(map) => {
                let text = map.data.unwrap_or_default().remove(KEY).ok_or(SourceError::NoKey(namespace))?;
                return Ok((format!("{KEY} of ConfigMap {namespace}/{CONFIG_MAP}"), text));
            }
            Err(SourceError::Refused { code: 403 | 404, text, .. }) => refusal = text,
            Err(error) => return Err(error),
        }
    }
    Err(SourceError::NoNetConf(refusal))
}
