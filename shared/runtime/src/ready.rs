//! Readiness: a program is ready while all its named parts are.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// What a part waits for; None while it is ready.
type Waiting = Option<String>;

/// The parts of a program that must be ready; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    parts: Arc<Mutex<BTreeMap<&'static str, Waiting>>>,
}

impl Readiness {
    /// Adds a part, which is not ready yet. Take all handles before the admin server starts: otherwise
    /// the program looks ready in between.
    #[must_use]
    pub fn handle(&self, name: &'static str) -> ReadyHandle {
        let handle = ReadyHandle {
            name,
            readiness: self.clone(),
        };
        handle.wait_for("starting");
        handle
    }

    /// Returns the parts that are not ready, each with its reason; empty when the program is ready.
    #[must_use]
    pub fn pending(&self) -> Vec<String> {
        let parts = self.parts.lock();
        parts
            .iter()
            .filter_map(|(name, waiting)| Some(format!("{name}: {}", waiting.as_ref()?)))
            .collect()
    }
}

/// Sets the readiness of one part. Dropping it changes nothing: a part that was ready stays ready.
#[derive(Clone, Debug)]
pub struct ReadyHandle {
    name: &'static str,
    readiness: Readiness,
}

impl ReadyHandle {
    /// Makes the part ready.
    pub fn ready(&self) {
        self.set(None);
    }

    /// Makes the part not ready; `/readyz` shows the reason.
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
        // a new handle is not worth a log line
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
