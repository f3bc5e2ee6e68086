//! Ports that have rules and that nobody holds: a keeper that starts without a predecessor has none.

use std::collections::BTreeSet;
use std::time::Instant;

use portmapping_runtime::deadline::chain;

use super::Keeper;
use portmapping_keeper::wire::{Outcome, Port};

impl Keeper {
    /// Holds what is `mapped` and not yet `held`, and returns all that is held then. What another
    /// process took in the meantime is logged; the state machine asks for it again and reports it.
    pub async fn hold_again(
        &mut self,
        mapped: BTreeSet<Port>,
        mut held: BTreeSet<Port>,
        started: Instant,
    ) -> BTreeSet<Port> {
        let unheld: Vec<Port> = mapped.difference(&held).copied().collect();
        if unheld.is_empty() {
            return held;
        }
        let outcomes = match self.hold(&unheld).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                tracing::warn!(error = chain(&error), "mapped ports could not be held yet");
                return held;
            }
        };
        let mut lost = 0_usize;
        for (port, outcome) in unheld.iter().zip(outcomes) {
            match outcome {
                Outcome::Held | Outcome::HeldWithoutSocket => {
                    held.insert(*port);
                }
                Outcome::Refused(errno) => {
                    lost += 1;
                    tracing::warn!(protocol = %port.0, port = %port.1, %errno, "lost while it was not held");
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
