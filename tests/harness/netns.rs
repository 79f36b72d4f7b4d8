//! Network namespaces that clean up after themselves.
//!
//! A namespace is named `<prefix>-<what>`; the prefix belongs to one [`Prefix`], which owns everything that carries it:
//! namespaces, the processes in them and one directory. A watchdog process, in a process group of its own, holds the
//! read end of a pipe whose write end only this process has: when the pipe closes, because the owner was dropped, or
//! the process was interrupted or killed, the watchdog removes the lot.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

const NETNS_DIR: &str = "/run/netns";
const FILES_DIR: &str = "/run/podwire-lab";

/// Removes what carries the prefix `$1`, and the directory `$2`. What a data plane has pinned outlives its namespace, and
/// is found by the namespace's cookie. What else outlives the processes is for the scripts in `$2/at-end`.
const REMOVE: &str = r#"
for path in /run/netns/"$1"-*; do
    [ -e "$path" ] || continue
    name=${path##*/}
    ip netns pids "$name" | xargs -r kill -KILL
    ip netns del "$name"
done
while read -r cookie; do rm -rf "/sys/fs/bpf/podwire/$cookie"; done <"$2/cookies"
for script in "$2"/at-end/*; do
    [ -e "$script" ] && sh "$script" "$1" "$2"
done
rm -rf --one-file-system -- "$2"
"#;

/// The name that all namespaces of one laboratory begin with, and their common fate.
pub struct Prefix {
    name: String,
    dir: PathBuf,
    watchdog: Option<Child>,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Prefix {
    /// A prefix of this process alone, `pw<pid>x<n>`. In one process there is one at a time: others wait here.
    pub fn fresh() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        reap();
        let name = format!("pw{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self::armed(name, Some(turn))
    }

    /// A prefix of a given name; what carried it before is removed first.
    pub fn named(name: &str) -> Self {
        Self::remove(name);
        Self::armed(name.to_owned(), None)
    }

    fn armed(name: String, turn: Option<MutexGuard<'static, ()>>) -> Self {
        let dir = Path::new(FILES_DIR).join(&name);
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("create {}: {e}", dir.display()));
        let watchdog = remove_command(&format!("cat >/dev/null; {REMOVE}"), &name)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("sh starts");
        Self { name, dir, watchdog: Some(watchdog), _turn: turn }
    }

    /// Leaves everything in place when this value is dropped and the process ends.
    pub fn keep(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            watchdog.kill().expect("our child");
            watchdog.wait().expect("our child");
        }
    }

    /// Removes what carries `name`.
    pub fn remove(name: &str) {
        remove_command(REMOVE, name).status().expect("sh starts");
    }

    /// A directory for files of this laboratory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name that everything of this laboratory begins with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has a shell script run, with the name and the directory as its arguments, when this laboratory has ended, however
    /// it ends: after the processes in its namespaces, before its directory goes.
    pub fn at_end(&self, what: &str, script: &str) {
        let scripts = self.dir.join("at-end");
        fs::create_dir_all(&scripts).expect("a directory for scripts");
        fs::write(scripts.join(what), script).expect("a script is written");
    }

    /// A new namespace with its loopback up.
    pub fn netns(&self, what: &str) -> Netns {
        let netns = Netns { name: format!("{}-{what}", self.name) };
        host(&format!("ip netns add {}", netns.name));
        let cookies = File::options().create(true).append(true).open(self.dir.join("cookies"));
        writeln!(cookies.expect("a file of cookies"), "{}", netns.cookie()).expect("a cookie is written");
        netns.run("ip link set lo up");
        netns
    }
}

impl Drop for Prefix {
    fn drop(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            drop(watchdog.stdin.take());
            watchdog.wait().ok();
        }
    }
}

/// Removes what test processes that were killed together with their watchdog have left.
fn reap() {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((prefix, _)) = name.split_once('-') else { continue };
        let Some((pid, _)) = prefix.strip_prefix("pw").and_then(|rest| rest.split_once('x')) else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            Prefix::remove(prefix);
        }
    }
}

fn remove_command(script: &str, prefix: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh", prefix])
        .arg(Path::new(FILES_DIR).join(prefix))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// A network namespace. Cheap to clone: the [`Prefix`] owns it, or whoever made it.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// A namespace that somebody else owns, by where it is mounted.
    pub fn mounted_at(path: &Path) -> Self {
        Self { name: path.to_str().expect("a path in UTF-8").to_owned() }
    }

    /// What `ip` calls it: its name, or a path where it is not in the usual place.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Removes the namespace before its prefix goes.
    pub fn remove(self) {
        host(&format!("ip netns del {}", self.name));
    }

    /// Its number, by which pins are called.
    pub fn cookie(&self) -> u64 {
        self.within(podwire::control::netns::cookie).expect("a cookie")
    }

    /// Where the namespace is mounted: a name that is a path already stays what it is.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// `program`, to be started inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// Runs a command line (words separated by blanks) inside, whatever comes of it.
    pub fn output(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        self.command(words.next().expect("a command")).args(words).output().expect("nsenter starts")
    }

    /// Runs a command line inside, which must succeed; returns what it printed.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        checked(line, &self.output(line))
    }

    /// Runs several command lines inside, one after the other.
    #[track_caller]
    pub fn run_all<S: AsRef<str>>(&self, lines: impl IntoIterator<Item = S>) {
        for line in lines {
            self.run(line.as_ref());
        }
    }

    /// Calls `f` on a thread of its own that is inside. Sockets opened there stay inside.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            let file = File::open(self.path())?;
            // SAFETY: the descriptor is open, and only this thread, which ends with `f`, changes its namespace.
            match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
                0 => Ok(f()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        let outcome = thread::scope(|scope| scope.spawn(inside).join());
        match outcome {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => panic!("enter {}: {error}", self.name),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Writes a setting below `/proc/sys/net`, named with slashes.
    pub fn sysctl(&self, name: &str, value: &str) {
        self.within(|| fs::write(Path::new("/proc/sys/net").join(name), value))
            .unwrap_or_else(|e| panic!("{name} = {value}: {e}"));
    }

    /// Lets IPv6 addresses work at once: no duplicate address detection on devices made from now on.
    pub fn skip_dad(&self) {
        self.sysctl("ipv6/conf/default/accept_dad", "0");
    }

    /// The MAC address of a device.
    pub fn mac(&self, device: &str) -> String {
        self.link(device)["address"].as_str().expect("an Ethernet device").to_owned()
    }

    /// The name of the device with an index.
    pub fn device(&self, index: u64) -> String {
        let links: serde_json::Value = serde_json::from_str(&self.run("ip -json link show")).expect("ip prints JSON");
        let found = links.as_array().into_iter().flatten().find(|link| link["ifindex"] == index);
        found.and_then(|link| link["ifname"].as_str()).unwrap_or_else(|| panic!("no device {index}")).to_owned()
    }

    /// What `ip` says of a device.
    #[track_caller]
    pub fn link(&self, device: &str) -> serde_json::Value {
        let printed = self.run(&format!("ip -json -details link show dev {device}"));
        serde_json::from_str::<serde_json::Value>(&printed).expect("ip prints JSON")[0].clone()
    }
}

/// Runs a command line outside of any namespace; it must succeed.
#[track_caller]
pub fn host(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a command")).args(words).output();
    checked(line, &output.unwrap_or_else(|e| panic!("{line}: {e}")))
}

#[track_caller]
fn checked(line: &str, output: &Output) -> String {
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "`{line}`: {}\n{printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}
