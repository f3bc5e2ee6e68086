//! Programs that are started before there is anything for them to do.

use std::sync::Arc;

use parking_lot::Mutex;

use super::exec::Spare;
use super::iptables::commands::Commands;

/// Where the program for the next change of one family waits.
pub(super) type Place = Arc<Mutex<Option<Spare>>>;

/// Programs to be started, and where each is to wait.
#[derive(Clone, Debug, Default)]
pub struct Preparations(pub(super) Vec<(Commands, Place)>);

impl Preparations {
    /// Starts what does not wait yet, in the network namespace of the caller. What cannot be
    /// started now is started when it is needed, or says then why not.
    pub fn make(&self) {
        for (commands, place) in &self.0 {
            if !place.lock().as_mut().is_some_and(Spare::waits)
                && let Ok(spare) = commands.spare()
            {
                // nobody may wait for a program's start: the place is free meanwhile
                let before = place.lock().replace(spare);
                drop(before);
            }
        }
    }
}
