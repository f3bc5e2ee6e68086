//! Reading files of a directory that others write to: regular files only, never waiting for one.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::result::MAX_SIZE;

/// Files of one directory that are looked at. A node has two per pod.
pub const MAX_FILES: usize = 65_536;

/// What a file had in it, and when it was last written (since the Unix epoch).
#[derive(Debug)]
pub struct Content {
    /// At most one byte more than [`MAX_SIZE`].
    pub bytes: Vec<u8>,
    /// Modification time.
    pub written: Duration,
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is gone again.
    #[error("it is gone")]
    Gone,
    /// A link, a pipe, a device: the runtime writes none of these.
    #[error("it is no regular file")]
    NotRegular,
    /// Anything else.
    #[error("it cannot be read")]
    Unreadable(#[source] std::io::Error),
}

impl From<Errno> for FileError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::Gone,
            // what open(2) says of a link under NOFOLLOW
            Errno::LOOP => Self::NotRegular,
            other => Self::Unreadable(other.into()),
        }
    }
}

/// Reads a whole file, or the first byte too many of it.
pub fn read(dir: &Path, name: &OsStr) -> Result<Content, FileError> {
    let path = dir.join(name);
    // looked at before it is opened: to open a device is to act on it
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
    // a clock before 1970 makes the oldest file of all
    let written = file.metadata()?.modified()?;
    let written = written.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut bytes = Vec::with_capacity(4096);
    file.take(MAX_SIZE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Content { bytes, written })
}

/// The names in a directory, [`MAX_FILES`] at most.
pub fn names(dir: &Path) -> std::io::Result<Vec<OsString>> {
    let entries = std::fs::read_dir(dir)?.take(MAX_FILES);
    entries.map(|entry| Ok(entry?.file_name())).collect()
}
