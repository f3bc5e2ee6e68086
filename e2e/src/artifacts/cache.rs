//! A folder per artifact, named by a hash of everything that went into it.

use std::fmt::Write;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};

use crate::paths;
use crate::progress::{self, Step};
use crate::wait::{self, Probe};

/// Longer than any build; another process that holds a lock for longer is stuck.
const PATIENCE: Duration = Duration::from_mins(45);
/// Older versions of an artifact stay this long after their last use.
const KEEP: Duration = Duration::from_hours(24);

/// The inputs of an artifact.
#[derive(Clone, Debug, Default)]
pub struct Inputs(Sha256);

impl Inputs {
    /// Adds a value that decides what is built: a version, a flag.
    #[must_use]
    pub fn value(mut self, value: &str) -> Self {
        self.0.update(value.len().to_le_bytes());
        self.0.update(value);
        self
    }

    /// Adds a file's content.
    pub fn file(mut self, path: &Path) -> Result<Self> {
        let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        self.0.update(content.len().to_le_bytes());
        self.0.update(content);
        Ok(self)
    }

    fn hash(self) -> String {
        let mut text = String::new();
        for byte in &self.0.finalize()[..8] {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

/// Returns the folder of the artifact, building it first where it is missing. `build` fills an empty
/// folder; no other process sees it before it is complete.
pub fn get(name: &str, inputs: Inputs, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = paths::cache();
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let folder = cache.join(format!("{name}-{}", inputs.hash()));
    if folder.is_dir() {
        touch(&folder);
        return Ok(folder);
    }
    let _lock = lock(&cache.join(format!("{name}.lock")), name)?;
    if folder.is_dir() {
        return Ok(folder); // built while we waited
    }
    let partial = cache.join(format!("{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
    }
    fs::create_dir(&partial).with_context(|| format!("create {}", partial.display()))?;
    let step = Step::start(name);
    build(&partial).with_context(|| format!("build {name}"))?;
    fs::rename(&partial, &folder)
        .with_context(|| format!("rename {} to {}", partial.display(), folder.display()))?;
    step.done("built");
    prune(&cache, name, &folder);
    Ok(folder)
}

/// Takes an exclusive lock that ends with this process. Waits while another process has it.
pub fn lock(path: &Path, what: &str) -> Result<File> {
    let open = || {
        File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)
    };
    let file = open().with_context(|| format!("open {}", path.display()))?;
    let mut reply = false;
    let what = format!(
        "another process that works on {what} (lock {})",
        path.display()
    );
    wait::until(&what, PATIENCE, Duration::from_millis(50), || {
        match file.try_lock() {
            Ok(()) => Ok(Probe::Done(())),
            Err(TryLockError::WouldBlock) => {
                if !reply {
                    progress::say(format_args!("waiting for {what}"));
                    reply = true;
                }
                Ok(Probe::Missing("it is still there".to_owned()))
            }
            Err(TryLockError::Error(error)) => Err(anyhow!("lock {}: {error}", path.display())),
        }
    })?;
    Ok(file)
}

/// Marks the folder as used today; [`prune`] goes by it.
fn touch(folder: &Path) {
    if let Ok(file) = File::open(folder) {
        let _ = file.set_modified(SystemTime::now());
    }
}

/// Removes artifacts that were not used for a day. Best effort: a full disk shows as another error.
fn prune(cache: &Path, name: &str, current: &Path) {
    let prefix = format!("{name}-");
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let file_name = entry.file_name();
        let hash = file_name.to_str().and_then(|n| n.strip_prefix(&prefix));
        let is_version = hash.is_some_and(|hash| hash.len() == 16 && !hash.contains('-'));
        let modified = entry.metadata().and_then(|data| data.modified());
        let age = modified.ok().and_then(|time| time.elapsed().ok());
        if is_version && entry.path() != current && age.is_some_and(|age| age > KEEP) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
