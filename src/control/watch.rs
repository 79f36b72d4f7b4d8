//! Tells the control loop that files in a directory may have changed: the configuration, and notes.
//!
//! The directory is watched, not a file in it: editors and Kubernetes volumes replace the file (or a
//! link on the way to it) by renaming, which a watch of the file itself loses.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// Why a directory is not watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch {dir} for changes: {source}", dir = .dir.display())]
pub struct WatchError {
    dir: PathBuf,
    source: notify::Error,
}

/// A watch on a directory; ends when dropped.
#[derive(Debug)]
pub struct DirWatch {
    changed: Arc<Notify>,
    _watcher: RecommendedWatcher,
}

impl DirWatch {
    /// Watches the directory that holds `file`, which is absolute.
    pub fn around(file: &Path) -> Result<Self, WatchError> {
        Self::new(file.parent().unwrap_or(file))
    }

    /// Watches `dir`.
    pub fn new(dir: &Path) -> Result<Self, WatchError> {
        let changed = Arc::new(Notify::new());
        let tell = Arc::clone(&changed);
        let watch = || {
            let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                if event.as_ref().map_or(true, |event| is_change(event.kind)) {
                    tell.notify_one();
                }
            })?;
            watcher.watch(dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        };
        let watcher = watch().map_err(|source| WatchError { dir: dir.to_owned(), source })?;
        Ok(Self { changed, _watcher: watcher })
    }

    /// Waits until something in the directory has changed since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// Whether an event may mean new contents. Reading the file is an event too and must not count.
fn is_change(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}
