use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, access, statvfs};

use super::super::evidence::{CniFile, Directory, Place};
use super::seen;
use crate::cni;

pub fn look(runtime_dir: &Path, cni_dir: &Path) -> Place {
    Place {
        runtime_dir: runtime_dir.to_owned(),
        runtime: seen(directory(runtime_dir)),
        cni_dir: cni_dir.to_owned(),
        cni: seen(configurations(cni_dir)),
    }
}

fn directory(path: &Path) -> io::Result<Option<Directory>> {
    let meta = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        meta => meta?,
    };
    let room = statvfs(path)?;
    Ok(Some(Directory {
        is_dir: meta.is_dir(),
        mode: meta.mode(),
        is_ours: meta.uid() == rustix::process::geteuid().as_raw(),
        unwritable: access(path, Access::WRITE_OK).err().map(|error| io::Error::from(error).to_string()),
        free_bytes: room.f_bavail.saturating_mul(room.f_frsize),
    }))
}

/// The configurations of a directory, sorted as runtimes do; none where there is no directory.
fn configurations(dir: &Path) -> io::Result<Vec<CniFile>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.retain(|path| cni::is_read(path));
    paths.sort();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_ours = |path: &Path| fs::read(path).is_ok_and(|text| cni::calls_podwire(&text));
    Ok(paths.iter().map(|path| CniFile { name: name(path), is_ours: is_ours(path) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_told_from_none_and_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let found = directory(dir.path()).unwrap().unwrap();
        assert!(found.is_dir && found.is_ours && found.unwritable.is_none() && found.free_bytes > 0, "{found:?}");
        assert!(directory(&dir.path().join("none")).unwrap().is_none());
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!directory(file.path()).unwrap().unwrap().is_dir);
    }

    #[test]
    fn configurations_are_read_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("20-b.conflist", r#"{"plugins": [{"type": "podwire"}, {"type": "portmap"}]}"#),
            ("10-a.conf", r#"{"type": "bridge"}"#),
            ("05-torn.json", "{"),
            ("01-not-read.bak", r#"{"type": "bridge"}"#),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let found = configurations(dir.path()).unwrap();
        let found: Vec<_> = found.iter().map(|file| (file.name.as_str(), file.is_ours)).collect();
        assert_eq!(found, [("05-torn.json", false), ("10-a.conf", false), ("20-b.conflist", true)]);
        assert!(configurations(&dir.path().join("none")).unwrap().is_empty());
    }
}
