//! The requests of one connection: when each of those in progress began.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::Activity;

#[derive(Debug, Default)]
pub(super) struct Requests(Arc<Mutex<Times>>);

#[derive(Debug, Default)]
struct Times {
    last: Option<Instant>,
    in_progress: Vec<Instant>,
}

/// A request in progress; it ends when this is dropped.
#[derive(Debug)]
pub struct OpenRequest {
    times: Arc<Mutex<Times>>,
    begun: Instant,
}

impl Requests {
    pub(super) fn begin(&self) -> OpenRequest {
        let begun = Instant::now();
        let mut times = self.0.lock();
        times.last = Some(begun);
        times.in_progress.push(begun);
        OpenRequest {
            times: Arc::clone(&self.0),
            begun,
        }
    }

    /// The oldest request in progress counts: a client that takes no response could else keep it for ever
    /// with new requests.
    pub(super) fn activity(&self, accepted: Instant) -> Activity {
        let times = self.0.lock();
        let oldest = times.in_progress.iter().min();
        match (oldest, times.last) {
            (Some(begun), _) => Activity::Busy(*begun),
            (None, Some(begun)) => Activity::Idle(begun),
            (None, None) => Activity::NoRequestYet(accepted),
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let all = &mut self.times.lock().in_progress;
        if let Some(index) = all.iter().position(|begun| *begun == self.begun) {
            all.swap_remove(index);
        }
    }
}
