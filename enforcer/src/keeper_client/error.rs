//! What can go wrong between enforcer and keeper.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a request to the keeper failed.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// No keeper answered in time.
    #[error(
        "no keeper answered at {} within {within:?}: does the keeper container (`enforcer keep`) \
         of this pod run, with the same --socket?",
        path.display()
    )]
    Connect {
        /// The keeper's socket.
        path: PathBuf,
        /// How long it was tried.
        within: Duration,
        /// Why the last try failed.
        #[source]
        source: io::Error,
    },
    /// The keeper is older than this program.
    #[error(
        "the keeper at {} speaks version {theirs} at most: run it from this enforcer's image",
        path.display()
    )]
    Version {
        /// The keeper's socket.
        path: PathBuf,
        /// Its version.
        theirs: u32,
    },
    /// The connection ended. Ports stay held unless the keeper died.
    #[error("lost the keeper at {} during {what}: connect again", path.display())]
    Lost {
        /// The request.
        what: &'static str,
        /// The keeper's socket.
        path: PathBuf,
        /// How it ended.
        #[source]
        source: io::Error,
    },
    /// Another keeper process answers than before: it holds what it took over, if anything.
    #[error("the keeper at {} was restarted: list its ports and hold the others", path.display())]
    Restarted {
        /// The keeper's socket.
        path: PathBuf,
    },
    /// The keeper did not answer. Whether it did what was asked is unknown; asking again is safe.
    #[error("the keeper at {} did not answer {what} within {after:?}", path.display())]
    Timeout {
        /// The request.
        what: &'static str,
        /// The keeper's socket.
        path: PathBuf,
        /// How long it had.
        after: Duration,
    },
    /// Another keeper has the ports, or is taking them: stop writing rules and annotations.
    #[error(
        "the keeper at {} handed its ports to the keeper of another pod, whose enforcer has the \
         node now",
        path.display()
    )]
    Retired {
        /// The keeper's socket.
        path: PathBuf,
    },
    /// The keeper found the request wrong.
    #[error("the keeper at {} rejected {what}: {message}", path.display())]
    Rejected {
        /// The request.
        what: &'static str,
        /// The keeper's socket.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// The answer is none to the request.
    #[error("the keeper at {} answered {what} with {reply}", path.display())]
    Garbled {
        /// The request.
        what: &'static str,
        /// The keeper's socket.
        path: PathBuf,
        /// The answer.
        reply: String,
    },
}
