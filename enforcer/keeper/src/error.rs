//! Why a keeper cannot start, and what to do.

use std::io;
use std::path::PathBuf;

use portmapping_shared::remedy;

/// Why a keeper cannot start.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The ranges have more ports than the process may have files.
    #[error(
        "the range {ranges} has {ports} ports, each costs an open file, and the limit of {files} \
         open files leaves room for {room}: use a smaller --range, or raise the container \
         runtime's limit (LimitNOFILE)"
    )]
    RangeTooLarge {
        /// The ranges as given.
        ranges: String,
        /// Ports in them.
        ports: usize,
        /// Hard limit of open files.
        files: usize,
        /// Ports that fit.
        room: usize,
    },
    /// A running keeper holds more sockets than this process may have open files.
    #[error(
        "another keeper of this node holds {sockets} sockets, but the limit of open files leaves \
         room for {room}: raise it to that keeper's limit; until then that keeper keeps the ports"
    )]
    NoRoomToTakeOver {
        /// Sockets of the other keeper.
        sockets: usize,
        /// Sockets that fit here.
        room: usize,
    },
    /// The other keepers did not hand over in time, so this one must not become active.
    #[error(
        "no other keeper of this node handed its ports over in time: {busy} answered, {silent} did not. A \
         keeper that does not answer for 10 s is passed over; for one that answers, look at its log"
    )]
    NotHandedOver {
        /// Keepers that answered and did not hand over.
        busy: usize,
        /// Keepers that did not answer.
        silent: usize,
    },
    /// The soft limit of open files could not be raised.
    #[error("cannot raise the soft limit of open files to the hard limit")]
    RaiseLimit {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The run directory cannot be used.
    #[error("cannot use the run directory {} (--run-dir){}", path.display(), remedy(source))]
    RunDir {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another user could put sockets into the run directory.
    #[error(
        "the run directory {} (--run-dir) has mode {mode:04o} and owner {uid}: it must be a \
         directory that this keeper's user owns and no other user can write to",
        path.display()
    )]
    UnsafeRunDir {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        uid: u32,
    },
    /// Another keeper already listens on the enforcer's socket.
    #[error("another keeper already listens at {} (--socket): only one may run in a pod", path.display())]
    AlreadyRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The enforcer's socket cannot be created.
    #[error("cannot listen at {} (--socket){}", path.display(), remedy(source))]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A thread or signal could not be set up.
    #[error("cannot set up {what}{}", remedy(source))]
    Setup {
        /// Which one.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}
