//! Holds mapped ports again: a keeper that starts without a predecessor holds none.

use std::collections::BTreeSet;
use std::time::Instant;

use portmapping_runtime::deadline::chain;
use portmapping_shared::PortKey;

use super::KeeperClient;
use portmapping_keeper::wire::HoldOutcome;

impl KeeperClient {
    /// Holds the ports of `mapped` that are not in `held`, and returns all held ports. A port that
    /// another process has bound in the meantime is logged; the state machine asks for it again and
    /// reports it on the pod.
    pub async fn reacquire(
        &mut self,
        mapped: &BTreeSet<PortKey>,
        mut held: BTreeSet<PortKey>,
        started: Instant,
    ) -> BTreeSet<PortKey> {
        let unheld: Vec<PortKey> = mapped.difference(&held).copied().collect();
        if unheld.is_empty() {
            return held;
        }
        let outcomes = match self.hold(&unheld).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "cannot hold the mapped ports yet; trying again"
                );
                return held;
            }
        };
        let mut lost = 0_usize;
        for (port, outcome) in unheld.iter().zip(outcomes) {
            match outcome {
                HoldOutcome::Held | HoldOutcome::HeldWithoutSocket => {
                    held.insert(*port);
                }
                HoldOutcome::Refused(errno) => {
                    lost += 1;
                    tracing::warn!(protocol = %port.0, port = %port.1, %errno, "cannot hold a mapped port; trying again");
                }
            }
        }
        tracing::info!(
            ports = unheld.len() - lost,
            lost,
            ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "mapped ports are held again"
        );
        held
    }
}
