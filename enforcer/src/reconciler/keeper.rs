//! Calls to the keeper, and what follows from its answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use portmapping_keeper::wire::{self, HoldOutcome};
use portmapping_runtime::deadline::chain;
use portmapping_shared::{PortKey, remedy};
use rustix::io::Errno;

use super::{Finished, Reconciler};
use crate::keeper_client::{KeeperClient, KeeperClientError};

/// Wait before a keeper is asked for its list again.
const LIST_AGAIN: Duration = Duration::from_secs(2);

/// What a call to the keeper returned; one call can return several.
pub(super) enum KeeperAnswer {
    Held(Vec<(PortKey, Result<(), String>)>),
    /// Ports that the kernel could not bind, and why.
    NotHeld(Vec<(PortKey, String)>),
    Released(Vec<PortKey>),
    Failed(Vec<PortKey>),
    Listed(BTreeSet<PortKey>),
    /// It could not be asked for its list, which is still needed.
    NotListed,
}

impl Reconciler {
    pub(super) fn hold(&mut self, keys: Vec<PortKey>) {
        let keeper = Arc::clone(&self.drivers.keeper);
        let metrics = self.drivers.metrics.clone();
        self.tasks.spawn(async move {
            let mut keeper = keeper.lock().await;
            let outcomes = keeper.hold(&keys).await;
            metrics.record_call("hold", outcomes.is_ok());
            Finished::Keeper(match outcomes {
                Ok(outcomes) => sort_outcomes(keys.into_iter().zip(outcomes)),
                Err(error) => after_failure(&mut keeper, "hold", keys, error).await,
            })
        });
    }

    pub(super) fn release(&mut self, keys: Vec<PortKey>) {
        let keeper = Arc::clone(&self.drivers.keeper);
        let metrics = self.drivers.metrics.clone();
        self.tasks.spawn(async move {
            let mut keeper = keeper.lock().await;
            let released = keeper.release(&keys).await;
            metrics.record_call("release", released.is_ok());
            Finished::Keeper(match released {
                Ok(_) => vec![KeeperAnswer::Released(keys)],
                Err(error) => after_failure(&mut keeper, "release", keys, error).await,
            })
        });
    }

    /// Asks the keeper what it holds: it may be new, or have received ports of another one.
    pub(super) fn list_keeper(&mut self) {
        let keeper = Arc::clone(&self.drivers.keeper);
        self.tasks.spawn(async move {
            let mut keeper = keeper.lock().await;
            Finished::Keeper(match keeper.list().await {
                Ok(held) => vec![KeeperAnswer::Listed(held)],
                Err(error) => after_failure(&mut keeper, "list", Vec::new(), error).await,
            })
        });
    }

    /// Asks it in a while. Without the list, ports that an earlier keeper held count as held.
    pub(super) fn list_keeper_later(&mut self) {
        if !std::mem::replace(&mut self.list_waits, true) {
            self.tasks.spawn(async {
                tokio::time::sleep(LIST_AGAIN).await;
                Finished::ListDue
            });
        }
    }

    pub(super) fn end_keeper_call(&mut self, now: Duration, answers: Vec<KeeperAnswer>) {
        for answer in answers {
            match answer {
                KeeperAnswer::Held(outcomes) => self.state.held(now, outcomes),
                KeeperAnswer::NotHeld(failures) => self.state.hold_failed(now, failures),
                KeeperAnswer::Released(keys) => self.state.released(now, &keys),
                KeeperAnswer::Failed(keys) => self.state.keeper_failed(now, &keys),
                KeeperAnswer::Listed(held) => self.state.keeper_listed(now, &held),
                KeeperAnswer::NotListed => self.list_keeper_later(),
            }
        }
    }
}

/// Sorts the outcomes of a hold: a port in use is refused, any other one that is not bound is asked
/// for again.
fn sort_outcomes(outcomes: impl Iterator<Item = (PortKey, HoldOutcome)>) -> Vec<KeeperAnswer> {
    let in_use = Errno::ADDRINUSE.raw_os_error();
    let mut settled = Vec::new();
    let mut failed = Vec::new();
    for (key, outcome) in outcomes {
        match outcome {
            HoldOutcome::Held | HoldOutcome::HeldWithoutSocket => settled.push((key, Ok(()))),
            HoldOutcome::Refused(errno) if errno.0 == in_use => {
                tracing::warn!(port = %key.1, protocol = %key.0, "another process uses this host port");
                settled.push((key, Err(errno.to_string())));
            }
            HoldOutcome::Refused(errno) => {
                tracing::error!(port = %key.1, protocol = %key.0, %errno, "cannot bind a host port; trying again");
                failed.push((key, reason(errno)));
            }
        }
    }
    let mut answers = vec![KeeperAnswer::Held(settled)];
    if !failed.is_empty() {
        answers.push(KeeperAnswer::NotHeld(failed));
    }
    answers
}

/// Returns why the kernel did not bind a port, and what to do.
fn reason(errno: wire::Errno) -> String {
    let error = std::io::Error::from_raw_os_error(errno.0);
    let remedy = if error.kind() == std::io::ErrorKind::PermissionDenied {
        "; a security module (SELinux, AppArmor) of the node may deny it"
    } else {
        remedy(&error)
    };
    format!("{errno}{remedy}")
}

/// Returns the failed keys; if the keeper was restarted or asked for its list, also what it holds now.
async fn after_failure(
    keeper: &mut KeeperClient,
    call: &'static str,
    keys: Vec<PortKey>,
    error: KeeperClientError,
) -> Vec<KeeperAnswer> {
    tracing::warn!(
        call,
        error = chain(&error),
        "a request to the keeper failed; trying again"
    );
    let mut answers = vec![KeeperAnswer::Failed(keys)];
    let listed = match error {
        KeeperClientError::Restarted { .. } => keeper.list().await,
        error if call == "list" => Err(error),
        _ => return answers,
    };
    match listed {
        Ok(held) => answers.push(KeeperAnswer::Listed(held)),
        Err(error) => {
            tracing::warn!(
                error = chain(&error),
                again = ?LIST_AGAIN,
                "cannot list the ports of the keeper; trying again"
            );
            if error.is_no_keeper() {
                answers.push(KeeperAnswer::Listed(BTreeSet::new()));
            }
            answers.push(KeeperAnswer::NotListed);
        }
    }
    answers
}

#[cfg(test)]
mod tests;
