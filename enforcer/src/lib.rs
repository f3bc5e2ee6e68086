//! The node daemon: watch the node's pods -> decide (pure core crate) -> act (keeper, dataplane,
//! publish).

pub mod args;
pub mod cni;
pub mod commands;
pub mod hold;
pub mod metrics;
pub mod node_facts;
pub mod pods;
pub mod prompt;
pub mod publish;
pub mod reconciler;
pub mod state;
