//! Host ports: which are free, which rest, and which pod had a resting one.

pub mod free_list;
pub(crate) mod previous;
pub(crate) mod timers;

pub use free_list::{Exhausted, PortKey, PortPool};
