//! The image that all pods run: busybox and nothing else, as an archive that `ctr` imports.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::harness::host;

pub const NAME: &str = "podwire.test/busybox:1";
/// Where it is here, and in the image.
pub const BUSYBOX: &str = "/bin/busybox";

/// Makes a root file system in `dir`, and returns where.
pub fn rootfs(dir: &Path) -> PathBuf {
    let rootfs = dir.join("rootfs");
    fs::create_dir_all(rootfs.join("bin")).expect("a directory");
    fs::copy(BUSYBOX, rootfs.join("bin/busybox")).expect("busybox is copied");
    rootfs
}

/// Makes an archive as `docker save` does (Docker Image Specification v1.2) in `dir`, and returns where.
pub fn archive(dir: &Path) -> PathBuf {
    let parts = dir.join("image");
    fs::create_dir_all(&parts).expect("a directory");
    let layer = parts.join("layer.tar");
    host(&format!("tar --create --file {} --directory {} .", layer.display(), rootfs(dir).display()));
    let sum = host(&format!("sha256sum {}", layer.display()));
    let diff_id = format!("sha256:{}", sum.split_whitespace().next().expect("a sum"));
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": [BUSYBOX, "sleep", "100000"] },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"] }]);
    fs::write(parts.join("config.json"), config.to_string()).expect("a file is written");
    fs::write(parts.join("manifest.json"), manifest.to_string()).expect("a file is written");
    let archive = dir.join("image.tar");
    host(&format!("tar --create --file {} --directory {} .", archive.display(), parts.display()));
    archive
}
