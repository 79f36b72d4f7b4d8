//! Notes that a CNI plugin leaves when no daemon answers it: pods that are to be detached.
//!
//! A note is an empty file in `detach/` of the runtime directory, whose name is the pod's with `+` for `/`. So it is
//! whole from the moment it is there, and leaving it twice is leaving it once.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::pods::is_pod_name;

/// The directory of notes in a runtime directory.
const DIR: &str = "detach";

/// The longest name of a file, in bytes (`NAME_MAX` in `include/uapi/linux/limits.h`).
const NAME_MAX: usize = 255;

/// How many files are looked at each time.
const MOST: usize = 1 << 16;

/// What lies in the directory of notes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// The pods that are to be detached.
    pods: Vec<String>,
    /// Files that are no notes.
    others: Vec<PathBuf>,
}

/// The daemon's side of the notes.
#[derive(Debug)]
pub struct Notes {
    runtime_dir: PathBuf,
    /// How many files were no notes at the last look.
    others: usize,
}

impl Notes {
    /// Notes in `runtime_dir`, from now on.
    pub fn open(runtime_dir: &Path) -> io::Result<Self> {
        make_dir(&dir(runtime_dir))?;
        Ok(Self { runtime_dir: runtime_dir.to_owned(), others: 0 })
    }

    /// The pods that are to be detached. Their notes stay until [`Notes::remove`].
    pub fn read(&mut self) -> Vec<String> {
        let found = find(&self.runtime_dir).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the notes of pods to detach");
            Found::default()
        });
        if let Some(other) = found.others.first().filter(|_| found.others.len() != self.others) {
            tracing::warn!("{} file(s) such as {} are no notes; remove them", found.others.len(), other.display());
        }
        self.others = found.others.len();
        found.pods
    }

    /// Whether there may be a note about the pod called `name`.
    pub fn may_tell_of(&self, name: &str) -> bool {
        let file = encode(name).map(|file| dir(&self.runtime_dir).join(file));
        file.is_some_and(
            |file| !matches!(file.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound),
        )
    }

    /// Removes the note about the pod called `name`.
    pub fn remove(&self, name: &str) {
        if let Err(error) = remove(&self.runtime_dir, name) {
            tracing::warn!(pod = name, %error, "cannot remove a note");
        }
    }
}

/// Where notes lie in a runtime directory.
pub fn dir(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join(DIR)
}

/// Leaves a note that the pod called `name` is to be detached; it survives a crash once this returns. Where there is no
/// runtime directory no daemon has attached anything since the boot, and there is nothing to note.
pub fn leave(runtime_dir: &Path, name: &str) -> io::Result<()> {
    let file = encode(name).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no pod can be called so"))?;
    let dir = dir(runtime_dir);
    match make_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        made => made?,
    }
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(dir.join(file))?.sync_all()?;
    for dir in [dir.as_path(), runtime_dir] {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Makes the directory, closed to others, unless it is there.
fn make_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// What lies there now.
fn find(runtime_dir: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    let entries = match fs::read_dir(dir(runtime_dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries.take(MOST) {
        let entry = entry?;
        match entry.file_name().to_str().and_then(decode).filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file()))
        {
            Some(pod) => found.pods.push(pod),
            None => found.others.push(entry.path()),
        }
    }
    Ok(found)
}

/// Removes a note; it may be gone already.
fn remove(runtime_dir: &Path, name: &str) -> io::Result<()> {
    let Some(file) = encode(name) else { return Ok(()) };
    match fs::remove_file(dir(runtime_dir).join(file)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Removes all notes, and their directory when nothing else is in it.
pub(super) fn clear(runtime_dir: &Path) -> io::Result<()> {
    for pod in find(runtime_dir)?.pods {
        remove(runtime_dir, &pod)?;
    }
    match fs::remove_dir(dir(runtime_dir)) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Err(error),
        _ => Ok(()),
    }
}

fn encode(name: &str) -> Option<String> {
    (is_pod_name(name) && name.len() <= NAME_MAX).then(|| name.replace('/', "+"))
}

fn decode(file: &str) -> Option<String> {
    Some(file.replace('+', "/")).filter(|name| is_pod_name(name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn notes_are_found_until_they_are_removed_and_each_once() {
        let root = tempfile::tempdir().unwrap();
        let names = ["0c1f:eth0", "default/web-1", "a"];
        for name in names.iter().chain(&names) {
            leave(root.path(), name).unwrap();
        }
        let mut pods = find(root.path()).unwrap().pods;
        pods.sort();
        assert_eq!(pods, ["0c1f:eth0", "a", "default/web-1"]);
        remove(root.path(), "default/web-1").unwrap();
        remove(root.path(), "default/web-1").unwrap();
        assert_eq!(find(root.path()).unwrap().pods.len(), 2);
        clear(root.path()).unwrap();
        assert_eq!((find(root.path()).unwrap(), dir(root.path()).exists()), (Found::default(), false));
        clear(root.path()).unwrap();
    }

    #[test]
    fn a_name_that_no_pod_can_have_leaves_no_note() {
        let root = tempfile::tempdir().unwrap();
        for name in ["", "../../etc/passwd", ".hidden", "a b", "a+b", "a\0b", &"x".repeat(256)] {
            assert_eq!(leave(root.path(), name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        assert!(!dir(root.path()).exists());
    }

    #[test]
    fn nothing_is_noted_where_no_daemon_has_been() {
        let root = tempfile::tempdir().unwrap();
        leave(&root.path().join("none"), "a:eth0").unwrap();
        assert!(!root.path().join("none").exists());
    }

    #[test]
    fn other_files_are_told_apart_and_left_alone() {
        let root = tempfile::tempdir().unwrap();
        leave(root.path(), "good").unwrap();
        let dir = dir(root.path());
        fs::create_dir(dir.join("subdir")).unwrap();
        symlink("/etc/passwd", dir.join("link")).unwrap();
        for name in [&b".tmp"[..], b"\xff\xfe", b"a b", b"-x"] {
            fs::write(dir.join(std::ffi::OsStr::from_bytes(name)), "").unwrap();
        }
        let found = find(root.path()).unwrap();
        assert_eq!((found.pods, found.others.len()), (vec!["good".to_owned()], 6));
        clear(root.path()).unwrap();
        assert_eq!(find(root.path()).unwrap().others.len(), 6);
    }

    #[test]
    fn a_link_in_the_place_of_a_note_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("target");
        make_dir(&dir(root.path())).unwrap();
        symlink(&target, dir(root.path()).join("a")).unwrap();
        assert!(leave(root.path(), "a").is_err());
        assert!(!target.exists());
    }
}
