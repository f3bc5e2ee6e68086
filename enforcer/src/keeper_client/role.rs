//! Whether this enforcer may act: its keeper knows, for it is the keeper that hands the node over.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use portmapping_runtime::deadline::chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::keeper_client::{HoldError, Watch};
use portmapping_keeper::wire::Duty;

/// How long one try to reach the keeper lasts.
const REACH: Duration = Duration::from_secs(5);

/// Follows the keeper's duty until the token is cancelled. `restarted` is told whenever the
/// connection was lost: a keeper that died holds nothing any more.
pub async fn follow(
    socket: PathBuf,
    duty: watch::Sender<Duty>,
    restarted: watch::Sender<u64>,
    token: CancellationToken,
) {
    loop {
        let watched = tokio::select! {
            () = token.cancelled() => return,
            end = watch_once(&socket, &duty, &restarted) => end,
        };
        let Err(error) = watched;
        tracing::warn!(
            error = chain(&error),
            "lost sight of the keeper; looking again"
        );
    }
}

async fn watch_once(
    socket: &PathBuf,
    duty: &watch::Sender<Duty>,
    restarted: &watch::Sender<u64>,
) -> Result<Infallible, HoldError> {
    let mut keeper = Watch::connect(socket, REACH).await?;
    restarted.send_modify(|count| *count += 1);
    loop {
        let now = keeper.next().await?;
        duty.send_replace(now);
    }
}
