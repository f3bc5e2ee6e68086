//! The node daemon: watch the node's pods -> decide (pure core crate) -> act (keeper, dataplane,
//! publish).

pub mod args;
pub mod cni;
pub mod health;
pub mod keeper_client;
pub mod metrics;
pub mod node_facts;
pub mod pods;
pub mod publish;
pub mod reconciler;
pub mod run;
pub mod scheduling;
mod startup;
pub mod state;
pub mod uninstall;
