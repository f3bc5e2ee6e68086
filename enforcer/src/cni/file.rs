//! Reads files of a directory that the runtime writes to. Opens regular files only, so that no read
//! blocks.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::result::MAX_SIZE;

/// Most files of the directory that are read. A node has two per pod.
pub(super) const MAX_FILES: usize = 65_536;

/// The content of a file and its modification time.
#[derive(Debug)]
pub(super) struct Content {
    /// At most [`MAX_SIZE`] bytes and one more, which shows that the file is too large.
    pub bytes: Vec<u8>,
    /// Modification time, since the Unix epoch.
    pub written: Duration,
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// It was removed.
    #[error("it was removed")]
    Gone,
    /// A link, a pipe, a device: the runtime writes none of these.
    #[error("it is not a regular file")]
    NotRegular,
    /// Any other error.
    #[error("it cannot be read")]
    Unreadable(#[source] std::io::Error),
}

impl From<Errno> for FileError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::Gone,
            // open(2) of a symbolic link with O_NOFOLLOW
            Errno::LOOP => Self::NotRegular,
            other => Self::Unreadable(other.into()),
        }
    }
}

/// Reads a file, up to one byte more than [`MAX_SIZE`].
pub(super) fn read(dir: &Path, name: &OsStr) -> Result<Content, FileError> {
    let path = dir.join(name);
    // checked before the open: opening a device can have effects
    require_regular(rustix::fs::lstat(&path)?.st_mode)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(&path, flags, Mode::empty())?);
    require_regular(rustix::fs::fstat(&file)?.st_mode)?;
    read_open(file).map_err(FileError::Unreadable)
}

fn require_regular(mode: rustix::fs::RawMode) -> Result<(), FileError> {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(FileError::NotRegular),
    }
}

fn read_open(file: File) -> std::io::Result<Content> {
    // a time before 1970 counts as 1970
    let written = file.metadata()?.modified()?;
    let written = written.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut bytes = Vec::with_capacity(4096);
    file.take(MAX_SIZE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Content { bytes, written })
}

/// Returns the names in a directory, [`MAX_FILES`] at most.
pub(super) fn names(dir: &Path) -> std::io::Result<Vec<OsString>> {
    let entries = std::fs::read_dir(dir)?.take(MAX_FILES);
    entries.map(|entry| Ok(entry?.file_name())).collect()
}
