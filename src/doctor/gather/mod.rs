//! Looks at the machine. Nothing here judges, and nothing is changed.

mod cpus;
mod network;
mod place;
mod trials;
mod uplink;

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::evidence::{Configured, Daemon, Evidence, Kernel, Memory, Privileges, Seen};
use crate::config::Config;
use crate::control::api::{Ready, Reply, Request};
use crate::control::client::{self, ClientError};
use crate::steer::{self, Pins};

/// Where a configuration is by custom.
const CONFIG: &str = "/etc/podwire.toml";

/// What to look at.
#[derive(Clone, Debug)]
pub struct Subject {
    pub runtime_dir: PathBuf,
    /// That of the daemon where none is named; else the one at the customary place.
    pub config: Option<PathBuf>,
    pub cni_dir: PathBuf,
}

/// Looks at everything, in the namespaces of the calling thread. Takes a moment: a hung daemon is waited for, and some
/// things are tried out.
pub fn evidence(subject: &Subject) -> Evidence {
    let daemon = daemon(&subject.runtime_dir);
    let config = configured(subject, &daemon);
    let valid = config.valid();
    let cores = valid.map(|config| config.dataplane.cores.clone()).unwrap_or_default();
    let ipv6 = valid.and_then(Config::underlay_is_ipv6).unwrap_or(false);
    let uplink = valid.map(|config| uplink::look(&config.node.uplink, ipv6));
    let pods = match &daemon {
        Daemon::Well { pods, .. } => pods.as_slice(),
        _ => &[],
    };
    let network = network::look(pods);
    Evidence {
        kernel: kernel(),
        trials: trials::run(),
        privileges: privileges(),
        cpus: cpus::look(Path::new("/sys"), &cores),
        memory: memory(Path::new("/sys/kernel/mm")),
        uplink,
        network,
        place: place::look(&subject.runtime_dir, &subject.cni_dir),
        config,
        daemon,
    }
}

fn daemon(runtime_dir: &Path) -> Daemon {
    let ask = |request| client::call(runtime_dir, request);
    let status = match ask(Request::Status) {
        Ok(Reply::Status(status)) => status,
        Ok(other) => return Daemon::Ill(ClientError::Unexpected(Box::new(other)).to_string()),
        Err(error @ ClientError::NoDaemon(..)) => return Daemon::Away(error.to_string()),
        Err(error) => return Daemon::Ill(error.to_string()),
    };
    match (ask(Request::PodsList), ask(Request::Ready)) {
        (Ok(Reply::Pods(pods)), Ok(Reply::Ready(Ready { ranges, .. }))) => Daemon::Well { status, pods, ranges },
        (Err(error), _) | (_, Err(error)) => Daemon::Ill(error.to_string()),
        (Ok(other), _) => Daemon::Ill(ClientError::Unexpected(Box::new(other)).to_string()),
    }
}

fn configured(subject: &Subject, daemon: &Daemon) -> Configured {
    let of_daemon = daemon.status().map(|status| status.config.file.clone());
    let customary = || Some(PathBuf::from(CONFIG)).filter(|file| file.exists());
    let Some(file) = subject.config.clone().or(of_daemon).or_else(customary) else { return Configured::No };
    match Config::load(&file) {
        Ok(config) => Configured::Valid(file, Box::new(config)),
        Err(error) => Configured::Bad(file, error.to_string()),
    }
}

fn kernel() -> Kernel {
    Kernel {
        release: word("/proc/sys/kernel/osrelease").unwrap_or_default(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        jit: word("/proc/sys/net/core/bpf_jit_enable"),
        knows_conntrack: steer::knows_conntrack(),
    }
}

fn privileges() -> Privileges {
    Privileges {
        root: rustix::process::geteuid().is_root(),
        effective: fs::read_to_string("/proc/self/status").map_err(|error| error.to_string()).and_then(|text| {
            let held = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
            held.and_then(|held| u64::from_str_radix(held.trim(), 16).ok()).ok_or("no CapEff in its status".to_owned())
        }),
        lockable: Ok(rustix::process::getrlimit(rustix::process::Resource::Memlock).current),
        bpffs: seen(Pins::have_file_system()),
    }
}

/// Of `/sys/kernel/mm`.
fn memory(mm: &Path) -> Memory {
    let huge = mm.join("hugepages/hugepages-2048kB");
    let all = number(huge.join("nr_hugepages"));
    let choice = word(mm.join("transparent_hugepage/enabled"));
    let chosen = choice.and_then(|words| Some(words.split_once('[')?.1.split_once(']')?.0.to_owned()));
    Memory { hugepages: all.zip(number(huge.join("free_hugepages"))), transparent: chosen }
}

/// A result with its error in words.
fn seen<T, E: ToString>(result: Result<T, E>) -> Seen<T> {
    result.map_err(|error| error.to_string())
}

/// The trimmed text of a small file.
fn word(file: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(file).ok().map(|text| text.trim().to_owned())
}

/// The number in a small file.
fn number<T: FromStr>(file: impl AsRef<Path>) -> Option<T> {
    word(file)?.parse().ok()
}

/// The CPUs in a file in the kernel's list format, such as `0-3,6`; none if it cannot be read.
fn cpu_list(file: impl AsRef<Path>) -> Vec<usize> {
    word(file).map(|text| crate::config::parse_cpu_list(&text)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_the_kernel_shows_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!((memory(dir.path()).hugepages, memory(dir.path()).transparent), (None, None));
        let huge = dir.path().join("hugepages/hugepages-2048kB");
        for (file, text) in [("nr_hugepages", "64\n"), ("free_hugepages", "3\n")] {
            fs::create_dir_all(&huge).unwrap();
            fs::write(huge.join(file), text).unwrap();
        }
        fs::create_dir(dir.path().join("transparent_hugepage")).unwrap();
        fs::write(dir.path().join("transparent_hugepage/enabled"), "always [madvise] never\n").unwrap();
        let memory = memory(dir.path());
        assert_eq!((memory.hugepages, memory.transparent.as_deref()), (Some((64, 3)), Some("madvise")));
    }

    #[test]
    fn this_process_knows_its_own_privileges_and_kernel() {
        assert!(privileges().effective.is_ok() && !kernel().release.is_empty());
    }
}
