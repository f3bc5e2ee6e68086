//! The node daemon: it maps the pods of its node.
//!
//! It owns the drivers and the loop between them: the watch on pods, the runtime's CNI results, the
//! client of the keeper, the writes to the API server. It must not decide anything: every decision is
//! made in the core crate, every rule is written in the data plane crate, every port is bound in the
//! keeper crate. It must not know the webhook.
//!
//! ```text
//! pods (API server) --PodUpdate----+                  +--> keeper_client --> keeper: hold, release
//! cni (CNI results) --SandboxUpdate+--> reconciler <--+--> dataplane: rules
//! keeper_client::role --KeeperRole-+    (core crate)  +--> publish: annotation, condition, events
//!
//! startup: what kernel and keeper already have     takeover: from another enforcer
//! run: starts all of this
//! ```

pub mod args;
pub mod cni;
mod conditions;
pub mod health;
pub mod keeper_client;
mod listing;
pub mod masquerade;
pub mod metrics;
mod node_addresses;
pub mod node_facts;
mod permission;
mod pods;
mod publish;
mod reconciler;
mod rules_lock;
pub mod run;
mod runtime;
pub mod selftest;
mod startup;
mod state;
mod takeover;
pub mod uninstall;
