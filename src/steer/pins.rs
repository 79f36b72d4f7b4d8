//! Where what outlives this process is pinned: a directory of the BPF file system for each network namespace, called
//! by the namespace's cookie, so that instances never meet.
//!
//! ```text
//!   /sys/fs/bpf/podwire/COOKIE/links/{uplink,uplink_tc,hub,hub_far,pod_IFINDEX,tunnel_IFINDEX}   the links that hold the programs on their devices
//!                             /maps/NAME                                for `bpftool map dump pinned`
//! ```

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use libbpf_rs::{MapCore, MapHandle, OpenMapMut};
use rustix::mount::MountFlags;

use super::SteerError;
use super::link::{PinnedLink, pin_object, remove_pin};
use crate::ids::IfIndex;

/// Where BPF file systems are mounted by custom.
const BPFFS: &str = "/sys/fs/bpf";

/// The type of the BPF file system (`include/uapi/linux/magic.h`).
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// The names of links.
pub(super) const UPLINK: &str = "uplink";
pub(super) const UPLINK_TC: &str = "uplink_tc";
pub(super) const HUB: &str = "hub";
pub(super) const HUB_FAR: &str = "hub_far";
const POD: &str = "pod_";
const TUNNEL: &str = "tunnel_";

/// The name of the link of a pod's device.
pub(super) fn pod(ifindex: IfIndex) -> String {
    format!("{POD}{ifindex}")
}

/// The name of the link of a VXLAN device.
pub(super) fn tunnel(ifindex: IfIndex) -> String {
    format!("{TUNNEL}{ifindex}")
}

/// The pins of one network namespace.
#[derive(Clone, Debug)]
pub struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// The pins of the network namespace with this cookie. Mounts a BPF file system where none is, and makes the
    /// directories, for this user alone.
    pub fn open(cookie: u64) -> Result<Self, SteerError> {
        let pins = Self::of(cookie);
        pins.make_dirs()?;
        Ok(pins)
    }

    /// The pins of the network namespace with this cookie, if there are any.
    pub fn find(cookie: u64) -> Option<Self> {
        let pins = Self::of(cookie);
        pins.dir.is_dir().then_some(pins)
    }

    /// Whether there is a BPF file system to pin in.
    pub fn have_file_system() -> io::Result<bool> {
        is_bpffs(Path::new(BPFFS))
    }

    fn of(cookie: u64) -> Self {
        Self { dir: Path::new(BPFFS).join("podwire").join(cookie.to_string()) }
    }

    /// Makes what is missing of the directories.
    pub(super) fn make_dirs(&self) -> Result<(), SteerError> {
        let bpffs = Path::new(BPFFS);
        mount_bpffs(bpffs).map_err(|source| failed("mount a BPF file system on", bpffs, source))?;
        for dir in [&bpffs.join("podwire"), &self.dir, &self.links(), &self.maps()] {
            claim(dir).map_err(|source| failed("use", dir, source))?;
        }
        Ok(())
    }

    fn links(&self) -> PathBuf {
        self.dir.join("links")
    }

    fn maps(&self) -> PathBuf {
        self.dir.join("maps")
    }

    /// Where a link is pinned.
    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Pins a map, in one step in the place of the one that was pinned by that name.
    pub(super) fn pin_map(&self, name: &str, map: BorrowedFd<'_>) -> Result<(), SteerError> {
        let (pin, next) = (self.maps().join(name), self.maps().join(format!("{name}_next")));
        let pinned = remove_pin(&next).and_then(|()| pin_object(map, &next)).and_then(|()| fs::rename(&next, &pin));
        pinned.map_err(|source| failed("pin a map at", &pin, source))
    }

    /// Has `map` be the one that is pinned by that name, if the two are laid out alike; else it begins anew.
    pub(super) fn reuse_map(&self, name: &str, map: &mut OpenMapMut<'_>) {
        let Ok(pinned) = MapHandle::from_pinned_path(self.maps().join(name)) else { return };
        let layout = (pinned.map_type(), pinned.key_size(), pinned.value_size(), pinned.max_entries());
        if layout != (map.map_type(), map.key_size(), map.value_size(), map.max_entries()) {
            tracing::info!(map = name, "the pinned map is laid out otherwise and is not taken over");
        } else if let Err(error) = map.reuse_fd(pinned.as_fd()) {
            tracing::warn!(map = name, %error, "the pinned map is not taken over");
        }
    }

    /// Removes the links of devices of pods and of tunnels that `keep` does not name. Goes on after an error and returns
    /// the first.
    pub(super) fn remove_devices(&self, keep: impl Fn(&str) -> bool) -> Result<(), SteerError> {
        let is_of_device = |name: &String| name.starts_with(POD) || name.starts_with(TUNNEL);
        let names = entries(&self.links())?;
        self.remove_links(names.into_iter().filter(|name| is_of_device(name) && !keep(name)))
    }

    fn remove_links(&self, names: impl Iterator<Item = String>) -> Result<(), SteerError> {
        let mut result = Ok(());
        for name in names {
            let pin = self.link(&name);
            let removed = PinnedLink::open(&pin).and_then(|link| link.map_or(Ok(()), PinnedLink::remove));
            result = result.and(removed.map_err(|source| failed("remove the link", &pin, source)));
        }
        result
    }

    /// Detaches all links and removes all pins and their directory, as far as they are there, and the one above if no
    /// other namespace has pins.
    pub fn remove(self) -> Result<(), SteerError> {
        self.remove_links(entries(&self.links())?.into_iter())?;
        for dir in [self.links(), self.maps(), self.dir.clone()] {
            for name in entries(&dir)? {
                let pin = dir.join(name);
                remove_pin(&pin).map_err(|source| failed("remove", &pin, source))?;
            }
            match fs::remove_dir(&dir) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &dir, source)),
                _ => {}
            }
        }
        if let Some(all) = self.dir.parent() {
            // It is not empty when other namespaces have theirs.
            let _ = fs::remove_dir(all);
        }
        Ok(())
    }
}

/// The names in a directory; none if there is no directory.
fn entries(dir: &Path) -> Result<Vec<String>, SteerError> {
    let names = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names,
    };
    let names =
        names.and_then(|names| names.map(|name| Ok(name?.file_name().to_string_lossy().into_owned())).collect());
    names.map_err(|source| failed("read", dir, source))
}

fn failed(act: &'static str, path: &Path, source: io::Error) -> SteerError {
    SteerError::Pins { act, path: path.to_owned(), source }
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(u32::try_from(rustix::fs::statfs(path)?.f_type) == Ok(BPF_FS_MAGIC))
}

/// Mounts a BPF file system, unless there is one.
fn mount_bpffs(path: &Path) -> io::Result<()> {
    if is_bpffs(path)? {
        return Ok(());
    }
    // Two daemons that start would mount two, and the pins of the first would be out of sight.
    let below = File::open(path)?;
    below.lock()?;
    if is_bpffs(path)? {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("bpf", path, "bpf", flags, c"mode=0700")?;
    tracing::info!(path = %path.display(), "mounted a BPF file system");
    Ok(())
}

/// Makes a directory of ours, which nobody but root may enter else; one of another user is refused.
fn claim(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let there = fs::symlink_metadata(dir)?;
    if !there.is_dir() || ![0, rustix::process::geteuid().as_raw()].contains(&there.uid()) {
        let whose = format!("it is no directory of this user, but of user {}; remove it", there.uid());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, whose));
    }
    if there.mode() & 0o777 == 0o700 { Ok(()) } else { fs::set_permissions(dir, fs::Permissions::from_mode(0o700)) }
}
