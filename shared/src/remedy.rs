//! What to do about an error of the operating system.

use std::io::{Error, ErrorKind};

/// `ENFILE` of Linux, which has no [`ErrorKind`].
const NODE_FILES: i32 = 23;
/// `EMFILE` of Linux, which has no [`ErrorKind`].
const PROCESS_FILES: i32 = 24;

/// Returns the limit or setting behind an error and what to do about it, as the end of a sentence;
/// empty for other errors.
#[must_use]
pub fn remedy(error: &Error) -> &'static str {
    match (error.raw_os_error(), error.kind()) {
        (Some(PROCESS_FILES), _) => {
            "; the process's limit of open files is used up: raise the container runtime's limit \
             (LimitNOFILE)"
        }
        (Some(NODE_FILES), _) => {
            "; the node's limit of open files is used up: raise the sysctl fs.file-max"
        }
        (_, ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            "; the file system is full: free space or inodes on it"
        }
        (_, ErrorKind::ReadOnlyFilesystem) => "; the file system is read-only: mount it read-write",
        (_, ErrorKind::PermissionDenied) => {
            "; access is denied: run as the owner of the directory, and check that no security \
             module (SELinux, AppArmor) denies it"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_limit_and_what_to_do() {
        // ENFILE, EMFILE, ENOSPC, EROFS, EACCES, EPERM
        for (errno, part) in [
            (23, "fs.file-max"),
            (24, "LimitNOFILE"),
            (28, "free space"),
            (30, "mount it read-write"),
            (13, "SELinux"),
            (1, "SELinux"),
        ] {
            let text = remedy(&Error::from_raw_os_error(errno));
            assert!(text.contains(part), "{errno}: {text}");
        }
        assert_eq!(remedy(&Error::from_raw_os_error(2)), "");
    }
}
