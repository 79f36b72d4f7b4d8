//! A client of the container runtime interface: the calls that the kubelet makes to run and to remove a pod.

use std::path::PathBuf;
use std::time::Duration;

use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ExecSyncResponse, ImageSpec,
    ListPodSandboxRequest, PodSandbox, PodSandboxConfig, PodSandboxStatusRequest, PodSandboxStatusResponse,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StatusRequest, StopPodSandboxRequest,
};
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::image;

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(40);

type Client = RuntimeServiceClient<Channel>;

/// A runtime's socket. Each call connects anew, so that it does not matter whether the runtime was started again.
#[derive(Clone, Debug)]
pub struct Cri {
    pub socket: PathBuf,
}

impl Cri {
    /// Whether the runtime answers and says that it can run pods.
    pub fn is_ready(&self) -> bool {
        let answer = self.call(async |client| client.status(StatusRequest::default()).await);
        let conditions = answer.ok().and_then(|answer| answer.status).map(|status| status.conditions);
        conditions.is_some_and(|conditions| !conditions.is_empty() && conditions.iter().all(|c| c.status))
    }

    /// Starts the sandbox of a pod, which calls the plugin with ADD; returns its id.
    pub fn run_sandbox(&self, config: &PodSandboxConfig) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        Ok(self.call(async |client| client.run_pod_sandbox(request).await)?.pod_sandbox_id)
    }

    /// Stops a sandbox, which calls the plugin with DEL.
    pub fn stop_sandbox(&self, id: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call(async |client| client.stop_pod_sandbox(request).await).map(drop)
    }

    /// Removes a sandbox, which calls the plugin with DEL again.
    pub fn remove_sandbox(&self, id: &str) -> Result<(), Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call(async |client| client.remove_pod_sandbox(request).await).map(drop)
    }

    /// The sandboxes that the runtime knows, with their ids.
    pub fn sandboxes(&self) -> Result<Vec<PodSandbox>, Status> {
        let answer = self.call(async |client| client.list_pod_sandbox(ListPodSandboxRequest::default()).await)?;
        Ok(answer.items)
    }

    pub fn sandbox_status(&self, id: &str) -> Result<PodSandboxStatusResponse, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        self.call(async |client| client.pod_sandbox_status(request).await)
    }

    /// Starts a container of the test's image in a sandbox; returns its id.
    pub fn run_container(
        &self,
        sandbox: &str,
        config: &PodSandboxConfig,
        command: Vec<String>,
    ) -> Result<String, Status> {
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: image::NAME.to_owned(), ..Default::default() }),
            command,
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(container),
            sandbox_config: Some(config.clone()),
        };
        let id = self.call(async |client| client.create_container(request).await)?.container_id;
        let request = StartContainerRequest { container_id: id.clone() };
        self.call(async |client| client.start_container(request).await)?;
        Ok(id)
    }

    /// Runs a command in a container to its end.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<ExecSyncResponse, Status> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 10,
        };
        self.call(async |client| client.exec_sync(request).await)
    }

    fn call<T>(&self, call: impl AsyncFnOnce(&mut Client) -> Result<Response<T>, Status>) -> Result<T, Status> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let exchange = async {
                let connected = Client::connect(format!("unix://{}", self.socket.display())).await;
                let mut client = connected.map_err(|e| Status::unavailable(e.to_string()))?;
                call(&mut client).await.map(Response::into_inner)
            };
            let answer = tokio::time::timeout(PATIENCE, exchange).await;
            answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
        })
    }
}

/// What a verbose status says beyond the interface's own fields.
pub fn info(status: &PodSandboxStatusResponse) -> serde_json::Value {
    serde_json::from_str(status.info.get("info").map_or("null", String::as_str)).expect("the runtime prints JSON")
}
