//! Follows the keeper's role, which decides whether this enforcer may write: the keeper is the one
//! that hands the node over.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use portmapping_keeper::wire::KeeperRole;
use portmapping_runtime::deadline::chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{KeeperClientError, RoleWatch};

/// How long one try to connect to the keeper lasts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Follows the keeper's role until the token is cancelled. Counts `connected` up whenever it has
/// connected: after the first time the keeper may be a new process that holds nothing.
pub async fn follow(
    socket: PathBuf,
    role: watch::Sender<KeeperRole>,
    connected: watch::Sender<u64>,
    token: CancellationToken,
) {
    loop {
        let watched = tokio::select! {
            () = token.cancelled() => return,
            end = watch_once(&socket, &role, &connected) => end,
        };
        let Err(error) = watched;
        tracing::warn!(
            error = chain(&error),
            "lost the connection to the keeper; connecting again"
        );
    }
}

async fn watch_once(
    socket: &PathBuf,
    role: &watch::Sender<KeeperRole>,
    connected: &watch::Sender<u64>,
) -> Result<Infallible, KeeperClientError> {
    let mut keeper = RoleWatch::connect(socket, CONNECT_TIMEOUT).await?;
    connected.send_modify(|count| *count += 1);
    loop {
        let now = keeper.next().await?;
        role.send_replace(now);
    }
}
