//! The directories in which a container runtime may write CNI results, and which of them is in use.

use std::fmt::{self, Display};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::select_all;

use super::directory_watch::DirectoryWatch;

/// The directories to look in, in the order of preference.
pub(super) struct Directories(Vec<Arc<Path>>);

impl Directories {
    pub(super) fn new(dirs: Vec<PathBuf>) -> Self {
        Self(dirs.into_iter().map(Into::into).collect())
    }

    /// Returns the directory that was changed last, of those that exist: a runtime that is not used any
    /// more leaves its results behind.
    pub(super) fn in_use(&self) -> Option<Arc<Path>> {
        let changed = |dir: &Arc<Path>| {
            let found = std::fs::metadata(dir).ok()?;
            // a removed directory that is still mounted has no links
            let exists = found.is_dir() && found.nlink() > 0;
            // times are as coarse as the kernel's tick
            let order = (found.modified().ok()?, !is_empty(dir));
            exists.then_some((order, Arc::clone(dir)))
        };
        // of equals `max_by_key` returns the last
        let found = self.0.iter().rev().filter_map(changed);
        found.max_by_key(|(order, _)| *order).map(|(_, dir)| dir)
    }

    /// Returns the first directory that this process may not look at. It may exist, and be in use.
    pub(super) fn denied(&self) -> Option<(PathBuf, std::io::Error)> {
        self.0.iter().find_map(|dir| {
            let error = std::fs::metadata(dir).err()?;
            (error.kind() == ErrorKind::PermissionDenied).then(|| (dir.to_path_buf(), error))
        })
    }

    /// Waits until one may have been created, at most for `limit`.
    pub(super) async fn arrival(&self, limit: Duration) {
        let parents = self.0.iter().filter_map(|dir| dir.parent());
        let mut watches: Vec<_> = parents
            .filter_map(|parent| DirectoryWatch::of_arrivals(parent).ok())
            .collect();
        let arrived = async {
            // the watches exist already: a directory created after this check is reported
            if self.in_use().is_some() {
                return;
            }
            if watches.is_empty() {
                return std::future::pending().await;
            }
            let _ = select_all(watches.iter_mut().map(|watch| Box::pin(watch.next()))).await;
        };
        let _ = tokio::time::timeout(limit, arrived).await;
    }
}

/// Whether a directory has no entry.
pub(super) fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut names| names.next().is_none())
}

impl Display for Directories {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|dir| dir.display().to_string()).collect();
        f.write_str(&names.join(", "))
    }
}
