//! Every decision of the enforcer, as one synchronous state machine: events in, actions out.
//!
//! No clock, no I/O, no randomness of its own: `now` is an argument (time since any fixed start)
//! and the random seed comes in at construction, so that a simulation can replay every schedule.
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
//! Level-triggered: each method records what is now known and then asks of every pod it concerns
//! what is still missing. A lost outcome or a missed event only delays the same result.

pub mod action;
pub mod addresses;
mod limiter;
mod mappings;
pub mod node;
pub mod phase;
pub mod pods;
pub mod ports;
pub mod sandbox;

pub use action::{Action, Condition, EventKind, PodEvent, Publication, Record};
pub use addresses::AddressSource;
pub use node::{Config, Counts, NodeState, PodStatus, Recovered, Status};
pub use phase::Phase;
pub use pods::state::PodFacts;
pub use ports::{Exhausted, PortKey, PortPool};
pub use sandbox::{InvalidSandboxId, Sandbox, SandboxId, SandboxUpdate};
