//! A containerd in the network namespace of a node, with root, state and socket of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::Duration;

use super::cri::Cri;
use super::harness::{Netns, Prefix, RUNTIME_REMAINS, wait_until};
use super::image;

/// How long it may take to start, and to import an image.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Containerd {
    netns: Netns,
    dir: PathBuf,
    /// The parent of its pods' cgroups.
    pub cgroup: String,
    process: Option<Child>,
}

impl Containerd {
    /// Starts one that finds the network's configuration in `<dir>/net.d` and the plugins in `<dir>/bin`, and waits until
    /// it can run pods.
    pub fn start(prefix: &Prefix, netns: &Netns, dir: &Path) -> Self {
        prefix.at_end("containerd", RUNTIME_REMAINS);
        let cgroup = format!("/{}", prefix.name());
        let mut containerd = Self { netns: netns.clone(), dir: dir.to_owned(), cgroup, process: None };
        fs::write(containerd.config(), containerd.config_text()).expect("a file is written");
        containerd.launch();
        let (socket, archive) = (containerd.socket(), image::archive(dir));
        containerd.netns.run(&format!(
            "ctr --address {} --namespace k8s.io images import {}",
            socket.display(),
            archive.display()
        ));
        containerd
    }

    /// Starts it again after it ended.
    #[track_caller]
    pub fn launch(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).expect("a log file");
        let mut command = self.netns.command("containerd");
        command.arg("--config").arg(self.config()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.process = Some(command.spawn().expect("nsenter starts"));
        assert!(wait_until(PATIENCE, || self.cri().is_ready()), "containerd is not ready\n{}", self.log_text());
    }

    /// Ends it as a crash would; its pods run on.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("containerd was started");
        process.kill().expect("our child");
        process.wait().expect("our child");
    }

    pub fn cri(&self) -> Cri {
        Cri { socket: self.socket() }
    }

    /// Where it finds plugins.
    pub fn plugins(&self) -> PathBuf {
        self.dir.join("bin")
    }

    /// Where it mounts the network namespaces of its pods.
    pub fn namespaces(&self) -> PathBuf {
        self.dir.join("state/io.containerd.grpc.v1.cri/netns")
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("containerd.toml")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("containerd.log")
    }

    fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Namespaces below the state directory, so that they can be told from those of other runtimes on the machine, and
    /// the snapshotter that needs nothing of the file system.
    fn config_text(&self) -> String {
        let (dir, image) = (self.dir.display(), image::NAME);
        format!(
            r#"version = 2
root = "{dir}/root"
state = "{dir}/state"

[grpc]
address = "{dir}/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
path = "{dir}/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_port = "0"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{dir}/runc"
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{dir}/bin"
conf_dir = "{dir}/net.d"
"#
        )
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
        if thread::panicking() {
            let log = self.log_text();
            let lines: Vec<_> = log.lines().filter(|line| line.contains("level=error")).collect();
            println!("---- errors of containerd in {}\n{}", self.netns.name(), lines.join("\n"));
        }
    }
}
