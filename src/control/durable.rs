//! Small files that must survive a crash: replaced as a whole (write aside, fsync, rename, fsync of the directory), so
//! that the old or the new one is there.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

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

/// Puts `contents`, as JSON, in the place of the file.
pub(super) fn write(path: &Path, contents: &impl Serialize) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    serde_json::to_writer_pretty(&mut file, contents)?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(dir)?.sync_all()
}
