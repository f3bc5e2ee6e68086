//! Readiness: the program is ready while every named part says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// What a part says of itself; None once it is ready.
type Waiting = Option<String>;

/// All parts that must be ready; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    parts: Arc<Mutex<BTreeMap<&'static str, Waiting>>>,
}

impl Readiness {
    /// Adds a part, not ready yet. Take all handles before the admin server starts, else the
    /// program looks ready in between.
    #[must_use]
    pub fn handle(&self, name: &'static str) -> ReadyHandle {
        let handle = ReadyHandle {
            name,
            readiness: self.clone(),
        };
        handle.wait_for("starting");
        handle
    }

    /// The parts that are not ready, each with its reason; empty when the program is ready.
    #[must_use]
    pub fn pending(&self) -> Vec<String> {
        let parts = self.parts.lock();
        parts
            .iter()
            .filter_map(|(name, waiting)| Some(format!("{name}: {}", waiting.as_ref()?)))
            .collect()
    }
}

/// One part's say. Dropping it changes nothing: what was ready stays ready.
#[derive(Debug)]
pub struct ReadyHandle {
    name: &'static str,
    readiness: Readiness,
}

impl ReadyHandle {
    /// The part is ready, until it says otherwise.
    pub fn ready(&self) {
        self.set(None);
    }

    /// The part is not ready, and why: a few words for whoever reads `/readyz`.
    pub fn wait_for(&self, why: impl Into<String>) {
        self.set(Some(why.into()));
    }

    /// Returns whether the part is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let parts = self.readiness.parts.lock();
        parts.get(self.name).is_some_and(Option::is_none)
    }

    fn set(&self, now: Waiting) {
        let before = self.readiness.parts.lock().insert(self.name, now.clone());
        // a handle's first word says nothing that anybody waits for
        let Some(before) = before else { return };
        match now {
            None if before.is_some() => tracing::info!(part = self.name, "ready"),
            Some(why) if before.as_ref() != Some(&why) => {
                tracing::info!(part = self.name, why, "not ready");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
