//! podman in the network namespace of a node, with storage and state of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::netns::{Netns, Prefix};

/// Removes what outlives containerd or podman, shims and the pods' namespaces: processes in these, mounts, sockets of shims, cgroups
/// (below one that bears the laboratory's name `$1`), and what libcni remembers of attachments in `$2`.
pub const RUNTIME_REMAINS: &str = r#"
namespaces() {
    awk -v dir="$1/" '$3 == "nsfs" && index($2, dir) == 1 { print $2 }' /proc/self/mounts
    cat "$1/adopted" 2>/dev/null
}
namespaces "$2" | while read -r path; do
    for process in /proc/[0-9]*; do
        [ "$process/ns/net" -ef "$path" ] && kill -KILL "${process##*/}"
    done
    grep -lsF "$path" /var/lib/cni/results/* | xargs -r rm -f
    umount -l "$path" && rm -f "$path"
done
find "$2" -xdev -path '*/io.containerd.runtime.v2.task/*' -name address -exec sed 's|^unix://||;a\' {} + | xargs -r rm -f
awk -v dir="$2/" 'index($2, dir) == 1 { print $2 }' /proc/self/mounts | sort -r | xargs -r umount -l
for _ in 1 2 3 4 5; do
    find /sys/fs/cgroup -depth -type d \( -path "*/$1/*" -o -name "$1" \) -exec rmdir {} + && break
    sleep 0.1
done
"#;

pub struct Podman {
    netns: Netns,
    dir: PathBuf,
    cgroup: String,
    /// Where it is written which namespace its container has, for when nobody removes it.
    adopted: PathBuf,
}

impl Podman {
    /// One that finds the network's configuration in `<dir>/net.d` and the plugins in `<dir>/bin`.
    pub fn new(prefix: &Prefix, netns: &Netns, dir: &Path) -> Self {
        prefix.at_end("podman", RUNTIME_REMAINS);
        let config = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{dir}/bin\"]\nnetwork_config_dir = \"{dir}/net.d\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \"runc\"\nevents_logger = \"none\"\nlock_type = \"file\"\n",
            dir = dir.display()
        );
        for part in ["bin", "net.d"] {
            fs::create_dir_all(dir.join(part)).expect("a directory");
        }
        fs::write(dir.join("containers.conf"), config).expect("a file is written");
        Self {
            netns: netns.clone(),
            dir: dir.to_owned(),
            cgroup: format!("/{}", prefix.name()),
            adopted: prefix.dir().join("adopted"),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The parent of its containers' cgroups.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Has a container's network namespace removed when the laboratory ends.
    pub fn adopt(&self, netns: &str) {
        fs::write(&self.adopted, netns).expect("a file is written");
    }

    /// podman, to be told what to do.
    pub fn command(&self) -> Command {
        let dir = &self.dir;
        let mut command = self.netns.command("podman");
        command.env("CONTAINERS_CONF", dir.join("containers.conf")).args(["--storage-driver", "vfs"]);
        for (option, part) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(dir.join(part));
        }
        command.arg("--runtime-flag").arg(format!("root={}", dir.join("runc").display()));
        command
    }

    /// Runs a command line (words separated by blanks), whatever comes of it.
    pub fn output(&self, line: &str) -> Output {
        self.command().args(line.split_whitespace()).output().expect("nsenter starts")
    }

    /// Runs a command line, which must succeed; returns what it printed.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let output = self.output(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "podman {line}: {}\n{said}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
