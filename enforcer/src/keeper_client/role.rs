//! Follows the keeper's role, which decides whether this enforcer may write: the keeper is the one
//! that hands the node over.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use portmapping_keeper::wire::KeeperRole;
use portmapping_runtime::deadline::chain;
use portmapping_shared::Backoff;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{KeeperClientError, RoleWatch};

/// How long one try to connect to the keeper lasts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Waits after a failure. Some come at once (no permission, another version); the first wait is short,
/// because no port may be held until the keeper answers.
const WAITS: Backoff = Backoff {
    first: Duration::from_millis(20),
    longest: Duration::from_secs(5),
};

/// Follows the keeper's role until the token is cancelled. Counts `connections` up whenever it has
/// connected or lost the connection: after the first time the keeper may be a new process that holds
/// nothing, or none may run.
pub async fn follow(
    socket: PathBuf,
    role: watch::Sender<KeeperRole>,
    connections: watch::Sender<u64>,
    token: CancellationToken,
) {
    let follow = async {
        let mut failures = 0;
        loop {
            let error = match RoleWatch::connect(&socket, CONNECT_TIMEOUT).await {
                Ok(watch) => {
                    failures = 0;
                    connections.send_modify(|count| *count += 1);
                    let Err(error) = forward(watch, &role).await;
                    connections.send_modify(|count| *count += 1);
                    error
                }
                Err(error) => error,
            };
            failures += 1;
            tracing::warn!(
                error = chain(&error),
                "lost the connection to the keeper; connecting again"
            );
            tokio::time::sleep(WAITS.after(failures, 0.0)).await;
        }
    };
    token.run_until_cancelled(follow).await;
}

/// Forwards every role until the connection fails.
async fn forward(
    mut watch: RoleWatch,
    role: &watch::Sender<KeeperRole>,
) -> Result<Infallible, KeeperClientError> {
    loop {
        role.send_replace(watch.next().await?);
    }
}
