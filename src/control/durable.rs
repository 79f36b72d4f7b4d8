//! Small files that must survive a crash: replaced as a whole (write aside, fsync, rename, fsync of the directory), so
//! that the old or the new one is there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Changes at each boot (`Documentation/admin-guide/sysctl/kernel.rst`, random).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What tells this boot of the machine from others.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(read(Path::new(BOOT_ID))?.unwrap_or_default().trim().to_owned())
}

/// The file's text, or `None` when there is no such file.
pub(super) fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the next contents of a file are written first. A process that is killed meanwhile leaves it, and the next write
/// takes its place.
pub(super) fn aside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// Puts `contents`, as JSON, in the place of the file, for its owner only. No two may do so at once.
pub(super) fn write(path: &Path, contents: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(contents)?;
    text.push(b'\n');
    replace(path, &text, 0o600)
}

/// Puts `text` in the place of the file, with these permissions. No two may do so at once.
pub(super) fn replace(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let aside = aside(path);
    let replace = || {
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(true).write(true).mode(mode).open(&aside)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    if let Err(error) = replace() {
        // It would take what is left of a full disk.
        let _ = fs::remove_file(&aside);
        return Err(error);
    }
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
