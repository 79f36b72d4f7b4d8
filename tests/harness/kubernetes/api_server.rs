//! A Kubernetes API server with its store and the controller that gives nodes their pod ranges: Debian's etcd, and
//! kube-apiserver and kube-controller-manager as `scripts/prepare.sh` builds them, on a host of their own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde_json::{Value, json};

use super::pki::Pki;
use crate::harness::{Host, Prefix, Switch, host, is_root, signal, wait_until};

/// How long the server may take to start, and to do what it was asked.
const PATIENCE: Duration = Duration::from_secs(60);

/// The place of the host on the underlay, beyond those of the nodes.
const INDEX: u8 = 200;

const PORT: u16 = 6443;

/// Who is served by certificate, besides the server's own clients.
const ADMIN: &str = "admin";
const MANAGER: &str = "system:kube-controller-manager";

/// Ranges of the cluster's pods, of which each node gets a /24 and a /48.
const POD_CIDRS: &str = "10.244.0.0/16,fd00:244::/32";
const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:96::/112";

pub struct ApiServer {
    pub host: Host,
    dir: PathBuf,
    pki: Pki,
    etcd: Option<Child>,
    server: Option<Child>,
    manager: Option<Child>,
}

impl ApiServer {
    /// Whether there is one to start; says so when not, or fails where CI must not skip.
    pub fn is_available() -> bool {
        let missing: Vec<_> = ["kube-apiserver", "kube-controller-manager"]
            .map(program)
            .into_iter()
            .chain([PathBuf::from("/usr/bin/etcd")])
            .filter(|path| !path.exists())
            .map(|path| path.display().to_string())
            .collect();
        if missing.is_empty() {
            return is_root();
        }
        let missing = missing.join(", ");
        assert!(std::env::var_os("CI").is_none(), "no API server: {missing} are missing (scripts/test makes them)");
        println!("skipped: needs {missing} (scripts/test makes them)");
        false
    }

    /// Starts all three on a host of their own, and waits until they serve.
    pub fn start(prefix: &Prefix, switch: &Switch) -> Self {
        let host = switch.host(prefix, 'k', INDEX);
        let dir = prefix.dir().join("kubernetes");
        let pki = Pki::new(&dir.join("pki"));
        pki.server("server", &host.addresses());
        pki.client(ADMIN, Some("system:masters"));
        pki.client(MANAGER, None);
        pki.keys("accounts");
        let mut server = Self { host, dir, pki, etcd: None, server: None, manager: None };
        for user in [ADMIN, MANAGER] {
            let certificate = server.pki.path(&format!("{user}.crt"));
            let credentials =
                json!({ "client-certificate": certificate, "client-key": certificate.with_extension("key") });
            server.write_kubeconfig(user, &credentials);
        }
        server.etcd = Some(server.spawn(Path::new("etcd"), &server.etcd_arguments()));
        server.launch();
        server
    }

    /// Starts the server again, and what depends on it, and waits until it serves.
    #[track_caller]
    pub fn launch(&mut self) {
        self.server = Some(self.spawn(&program("kube-apiserver"), &self.server_arguments()));
        let ready = wait_until(PATIENCE, || self.is_ready());
        assert!(ready, "the API server does not serve\n{}", self.log("kube-apiserver"));
        self.manager = Some(self.spawn(&program("kube-controller-manager"), &self.manager_arguments()));
    }

    /// Ends the server and what depends on it in good order; the store stays.
    pub fn stop(&mut self) {
        self.end(libc::SIGTERM);
    }

    /// The same, as a crash would.
    pub fn kill(&mut self) {
        self.end(libc::SIGKILL);
    }

    fn end(&mut self, by: i32) {
        for mut child in [self.manager.take(), self.server.take()].into_iter().flatten() {
            signal(&child, by);
            child.wait().expect("our child");
        }
    }

    fn is_ready(&self) -> bool {
        let request = || hyper::Request::get("/readyz").body(Vec::new()).expect("a request");
        self.try_ask(&self.admin(), async |client| client.request_text(request()).await).is_ok()
    }

    /// What the server's program says that it is, such as `Kubernetes v1.20.2`.
    pub fn version() -> String {
        let path = program("kube-apiserver");
        host(&format!("{} --version", path.display())).trim().to_owned()
    }

    /// How the administrator reaches the server.
    pub fn admin(&self) -> PathBuf {
        self.kubeconfig(ADMIN)
    }

    /// How a service account reaches it, with a token as a kubelet would get it for a pod. Each call replaces the
    /// token in the file that the credentials name.
    pub fn account(&self, namespace: &str, name: &str) -> PathBuf {
        self.account_bound(namespace, name, None)
    }

    /// The same with a token that is void as soon as a secret of that name is gone.
    pub fn account_bound(&self, namespace: &str, name: &str, secret: Option<&str>) -> PathBuf {
        let token = self.dir.join(format!("{name}.token"));
        let next = self.dir.join("next.token");
        fs::write(&next, self.token(namespace, name, secret)).expect("a file is written");
        fs::rename(next, &token).expect("a file is replaced");
        self.write_kubeconfig(name, &json!({ "tokenFile": token }))
    }

    /// The directory and the environment that a pod of a service account gets of its kubelet.
    pub fn pod_account(&self, namespace: &str, name: &str) -> (PathBuf, [String; 2]) {
        let dir = self.dir.join(format!("{name}.serviceaccount"));
        fs::create_dir_all(&dir).expect("a directory");
        fs::copy(self.pki.path("ca.crt"), dir.join("ca.crt")).expect("a file is copied");
        fs::write(dir.join("namespace"), namespace).expect("a file is written");
        fs::write(dir.join("token"), self.token(namespace, name, None)).expect("a file is written");
        let address = [("HOST", self.host.underlay.to_string()), ("PORT", PORT.to_string())];
        (dir, address.map(|(key, value)| format!("KUBERNETES_SERVICE_{key}={value}")))
    }

    fn token(&self, namespace: &str, name: &str, secret: Option<&str>) -> String {
        let bound_object_ref = secret.map(|secret| BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            name: Some(secret.to_owned()),
            uid: None,
        });
        let request = TokenRequest {
            spec: TokenRequestSpec { expiration_seconds: Some(3600), bound_object_ref, ..Default::default() },
            ..Default::default()
        };
        let created = self.ask(async |client| {
            let accounts = Api::<ServiceAccount>::namespaced(client, namespace);
            accounts.create_token_request(name, &PostParams::default(), &request).await
        });
        created.status.expect("a token").token
    }

    fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir.join(format!("{user}.kubeconfig"))
    }

    fn write_kubeconfig(&self, user: &str, credentials: &Value) -> PathBuf {
        let url = format!("https://{}", std::net::SocketAddr::new(self.host.underlay, PORT));
        let cluster = json!({ "server": url, "certificate-authority": self.pki.path("ca.crt") });
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "lab", "cluster": cluster }],
            "users": [{ "name": user, "user": credentials }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": user } }],
            "current-context": "lab",
        });
        let path = self.kubeconfig(user);
        fs::write(&path, format!("{config:#}")).expect("a file is written");
        path
    }

    /// Asks as the administrator what must succeed.
    #[track_caller]
    pub fn ask<T: Send>(&self, request: impl AsyncFnOnce(Client) -> kube::Result<T> + Send) -> T {
        self.try_ask(&self.admin(), request).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Asks with the given credentials, from the server's host.
    pub fn try_ask<T: Send>(
        &self,
        kubeconfig: &Path,
        request: impl AsyncFnOnce(Client) -> kube::Result<T> + Send,
    ) -> kube::Result<T> {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
                let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
                request(Client::try_from(config.expect("a configuration"))?).await
            })
        };
        self.host.netns.within(run)
    }

    /// Creates the objects of a manifest.
    #[track_caller]
    pub fn create(&self, objects: Vec<Value>) {
        self.ask(async |client| {
            for object in objects {
                let object: DynamicObject = serde_json::from_value(object).expect("an object");
                api_of(client.clone(), &object).create(&PostParams::default(), &object).await?;
            }
            Ok(())
        });
    }

    /// Makes a node known, as its kubelet would.
    #[track_caller]
    pub fn create_node(&self, name: &str) {
        self.create(vec![json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } })]);
    }

    /// What a node's own daemon would write on its object.
    #[track_caller]
    pub fn annotate(&self, name: &str, annotations: &Value) {
        let patch = Patch::Strategic(json!({ "metadata": { "annotations": annotations } }));
        self.ask(async |client| Api::<Node>::all(client).patch_status(name, &PatchParams::default(), &patch).await);
    }

    #[track_caller]
    pub fn delete_node(&self, name: &str) {
        self.ask(async |client| Api::<Node>::all(client).delete(name, &DeleteParams::default()).await);
    }

    #[track_caller]
    pub fn node(&self, name: &str) -> Node {
        self.ask(async |client| Api::<Node>::all(client).get(name).await)
    }

    /// Waits until the controller has given a node its pod ranges.
    #[track_caller]
    pub fn pod_cidrs(&self, name: &str) -> Vec<String> {
        let mut cidrs = Vec::new();
        let given = wait_until(PATIENCE, || {
            cidrs = self.node(name).spec.and_then(|spec| spec.pod_cidrs).unwrap_or_default();
            !cidrs.is_empty()
        });
        assert!(given, "{name} got no pod ranges\n{}", self.log("kube-controller-manager"));
        cidrs
    }

    fn spawn(&self, program: &Path, arguments: &[String]) -> Child {
        let name = program.file_name().expect("a program").to_string_lossy();
        let log = File::options().create(true).append(true).open(self.log_file(&name)).expect("a log file");
        let mut command = self.host.netns.command(program);
        command.args(arguments).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        command.spawn().expect("nsenter starts")
    }

    fn log_file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.log_file(name)).unwrap_or_default()
    }

    fn etcd_arguments(&self) -> Vec<String> {
        vec![
            format!("--data-dir={}", self.dir.join("etcd").display()),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        ]
    }

    fn server_arguments(&self) -> Vec<String> {
        let file = |name: &str| self.pki.path(name).display().to_string();
        vec![
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--bind-address={}", self.host.underlay),
            format!("--secure-port={PORT}"),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--service-account-key-file={}", file("accounts.pub")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
            "--authorization-mode=RBAC".to_owned(),
            "--feature-gates=IPv6DualStack=true".to_owned(),
        ]
    }

    fn manager_arguments(&self) -> Vec<String> {
        vec![
            format!("--kubeconfig={}", self.kubeconfig(MANAGER).display()),
            "--controllers=nodeipam".to_owned(),
            "--use-service-account-credentials".to_owned(),
            "--leader-elect=false".to_owned(),
            "--port=0".to_owned(),
            "--secure-port=0".to_owned(),
            "--allocate-node-cidrs".to_owned(),
            format!("--cluster-cidr={POD_CIDRS}"),
            "--node-cidr-mask-size-ipv4=24".to_owned(),
            "--node-cidr-mask-size-ipv6=48".to_owned(),
            format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
            "--feature-gates=IPv6DualStack=true".to_owned(),
        ]
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["kube-apiserver", "kube-controller-manager", "etcd"] {
                let log = self.log(name);
                let last: Vec<_> = log.lines().rev().take(30).collect();
                println!("---- end of the log of {name}");
                last.into_iter().rev().for_each(|line| println!("{line}"));
            }
        }
        // Without its store the server takes a minute to end.
        self.kill();
        if let Some(mut etcd) = self.etcd.take() {
            etcd.kill().ok();
            etcd.wait().ok();
        }
    }
}

/// How objects of this one's kind are reached.
pub fn api_of(client: Client, object: &DynamicObject) -> Api<DynamicObject> {
    let types = object.types.as_ref().expect("apiVersion and kind");
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(types).expect("apiVersion and kind"));
    match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    }
}

/// Where `scripts/prepare.sh` keeps a program of Kubernetes, unless `PODWIRE_KUBERNETES` names another directory.
fn program(name: &str) -> PathBuf {
    let built = || {
        let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| PathBuf::from("/var/cache"), PathBuf::from);
        cache.join("podwire/kubernetes-1.20.2")
    };
    std::env::var_os("PODWIRE_KUBERNETES").map_or_else(built, PathBuf::from).join(name)
}
