//! Why a request to the keeper fails.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a request to the keeper failed.
#[derive(Debug, thiserror::Error)]
pub enum KeeperClientError {
    /// No keeper answered in time.
    #[error(
        "no keeper answered at {} within {within:?}: does the keeper container (`enforcer keep`) \
         of this pod run, with the same --socket?",
        path.display()
    )]
    Connect {
        /// The keeper's socket.
        path: PathBuf,
        /// How long the client tried.
        within: Duration,
        /// Why the last try failed.
        #[source]
        source: io::Error,
    },
    /// The keeper is older than this program.
    #[error(
        "the keeper at {} understands protocol version {theirs} at most: run it from the same image as \
         this enforcer",
        path.display()
    )]
    Version {
        /// The keeper's socket.
        path: PathBuf,
        /// Its version.
        theirs: u32,
    },
    /// The connection ended. Ports stay held unless the keeper died.
    #[error("the connection to the keeper at {} ended during {what}", path.display())]
    Lost {
        /// The request.
        what: &'static str,
        /// The keeper's socket.
        path: PathBuf,
        /// How it ended.
        #[source]
        source: io::Error,
    },
    /// Another keeper process answers than before. It may hold nothing.
    #[error("the keeper at {} was restarted: its ports are listed and the missing ones held again", path.display())]
    Restarted {
        /// The keeper's socket.
        path: PathBuf,
    },
    /// The keeper did not answer in time. It may have done what was asked; asking again is safe.
    #[error("the keeper at {} did not answer {what} within {after:?}", path.display())]
    Timeout {
        /// The request.
        what: &'static str,
        /// The keeper's socket.
        path: PathBuf,
        /// How long it had.
        after: Duration,
    },
    /// Another keeper holds the ports, or is taking them over: write no more rules and annotations.
    #[error(
        "the keeper at {} handed its ports to the keeper of another pod; that pod's enforcer maps this \
         node now",
        path.display()
    )]
    Retired {
        /// The keeper's socket.
        path: PathBuf,
    },
    /// The keeper refused the request as invalid.
    #[error("the keeper at {} rejected {what}: {message}", path.display())]
    Rejected {
        /// The request.
        what: &'static str,
        /// The keeper's socket.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// The reply does not fit the request.
    #[error("the keeper at {} answered {what} with an unexpected reply: {reply}", path.display())]
    UnexpectedReply {
        /// The request.
        what: &'static str,
        /// The keeper's socket.
        path: PathBuf,
        /// The answer.
        reply: String,
    },
}

impl KeeperClientError {
    /// Whether no keeper runs, so that no port is held. One that only does not answer holds its ports.
    #[must_use]
    pub fn is_no_keeper(&self) -> bool {
        let kinds = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
        matches!(self, Self::Connect { source, .. } if kinds.contains(&source.kind()))
    }
}
