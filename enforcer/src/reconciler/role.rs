//! Waits for what the keeper says of its role.

use portmapping_keeper::wire::KeeperRole;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ReconcileError;

/// Waits for the next word on the role, and leaves it unread. Cancel-safe.
pub(super) async fn wait_for_word(
    role: &mut watch::Receiver<KeeperRole>,
) -> Result<(), watch::error::RecvError> {
    role.changed().await?;
    role.mark_changed();
    Ok(())
}

/// Waits for the token. Fails if the keeper becomes active again, because the successor ended: what
/// this process knows of the kernel is out of date by then, so it must start over.
pub(super) async fn wait_retired(
    role: &mut watch::Receiver<KeeperRole>,
    token: &CancellationToken,
) -> Result<(), ReconcileError> {
    tokio::select! {
        () = token.cancelled() => Ok(()),
        active = role.wait_for(|role| *role == KeeperRole::Active) => match active {
            Ok(_) => Err(ReconcileError::RoleReturned),
            // the task that follows the keeper's role ended: the program is terminating
            Err(_) => Ok(()),
        },
    }
}
