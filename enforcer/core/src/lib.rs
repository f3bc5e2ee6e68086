//! Every decision of a node's enforcer, as one synchronous state machine: events in, actions out.
//!
//! The crate has no clock, no I/O and no random source: `now` is an argument (time since any fixed
//! start), and the random seed is an argument of the constructor. So a simulation can repeat every
//! sequence of events. The crate must not know how ports are held, rules are written or the API
//! server is reached.
//!
//! ```text
//!  pod seen / gone ----+
//!  sandbox up / down --+
//!  port held / refused |     +------------+     Hold, Release   -> keeper
//!  kernel read back ---+---> | NodeState  | --> Program(Plan)   -> dataplane
//!  plan applied -------|     +------------+     Publish, Event  -> API server
//!  published ----------+          |
//!  tick(now) ----------+          +--> next_deadline()
//! ```
//!
//! [`NodeState`] asks three parts: `ports` (the ledger: what each host port is doing), `pods` (what
//! each pod asks for and what the API must say about it) and `kernel` (which rules there should be
//! and which there are). `addresses` decides which pod owns an address.
//!
//! Level-triggered: each method records what is now known and then asks, for every pod that this
//! concerns, what is still missing. A lost answer or a missed event only delays the same result.

mod action;
mod addresses;
mod kernel;
mod limiter;
mod node;
mod phase;
mod pods;
mod ports;
mod sandbox;

pub use action::{
    Action, Closed, Condition, EventKind, PodEvent, Publication, PublishOutcome, Record, RuleError,
};
pub use node::{Config, Counts, NodeState, PodStatus, Recovered, Status};
pub use phase::Phase;
pub use pods::{PodFacts, uninstalled};
pub use sandbox::{AddressSource, InvalidSandboxId, Sandbox, SandboxId, SandboxUpdate};
