//! What to do about an error of the system.

use std::io;

use portmapping_shared::remedy;

/// What to do where the container has the capability, as the end of a sentence: clouds confine programs.
pub(super) const DENIED: &str = "; where it has it, a security module (SELinux, AppArmor) or a seccomp \
    profile of the node denies the call: permit it for this container";

/// Returns the limit behind an error of the system and what to do, as the end of a sentence.
pub(super) fn limit(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => DENIED,
        _ => remedy(error),
    }
}
