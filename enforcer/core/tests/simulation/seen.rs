//! What happened in the walks.

use std::ops::AddAssign;

/// How often each thing happened, so that a walk in which it never does is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) mapped: u64,
    pub(crate) restarts: u64,
    pub(crate) backends: u64,
    pub(crate) reboots: u64,
    pub(crate) sandboxes_moved: u64,
    pub(crate) inherited: u64,
    pub(crate) release_early: u64,
    pub(crate) forged: u64,
    pub(crate) repaired: u64,
    pub(crate) exhausted: u64,
    pub(crate) conflicts: u64,
    pub(crate) typos: u64,
    pub(crate) wiped: u64,
    pub(crate) confirmed: u64,
    pub(crate) doubted: u64,
    pub(crate) leftovers: u64,
    pub(crate) finalizers: u64,
    pub(crate) static_pods: u64,
    pub(crate) previous: u64,
    pub(crate) bounded: u64,
    pub(crate) churned: u64,
    pub(crate) claims_bounded: u64,
    pub(crate) contested: u64,
    pub(crate) restored: u64,
    pub(crate) two_addresses: u64,
    pub(crate) moved_hosts: u64,
    pub(crate) unknown: u64,
    pub(crate) retired: u64,
    pub(crate) taken_over: u64,
    pub(crate) undone: u64,
    pub(crate) late: u64,
    pub(crate) closed: u64,
    /// Addresses of IPv6 alone.
    pub(crate) ipv6_alone: u64,
    /// Reads that a change made useless.
    pub(crate) read_again: u64,
}

impl Seen {
    fn all(&mut self) -> [&mut u64; 34] {
        [
            &mut self.mapped,
            &mut self.restarts,
            &mut self.backends,
            &mut self.reboots,
            &mut self.sandboxes_moved,
            &mut self.inherited,
            &mut self.release_early,
            &mut self.forged,
            &mut self.repaired,
            &mut self.exhausted,
            &mut self.conflicts,
            &mut self.typos,
            &mut self.wiped,
            &mut self.confirmed,
            &mut self.doubted,
            &mut self.leftovers,
            &mut self.finalizers,
            &mut self.static_pods,
            &mut self.previous,
            &mut self.bounded,
            &mut self.churned,
            &mut self.claims_bounded,
            &mut self.contested,
            &mut self.restored,
            &mut self.two_addresses,
            &mut self.moved_hosts,
            &mut self.unknown,
            &mut self.retired,
            &mut self.taken_over,
            &mut self.undone,
            &mut self.late,
            &mut self.closed,
            &mut self.ipv6_alone,
            &mut self.read_again,
        ]
    }

    pub(crate) fn everything(mut self) -> bool {
        self.all().iter().all(|count| **count > 0)
    }
}

impl AddAssign for Seen {
    fn add_assign(&mut self, mut other: Self) {
        for (sum, count) in self.all().into_iter().zip(other.all()) {
            *sum += *count;
        }
    }
}
