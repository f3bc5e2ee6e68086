//! The keeper and its client against the real kernel, each test in a network namespace of its own.
//!
//! Needs root; panics without.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also outside of #[test]

mod binds;
mod clients;
mod facts;
mod handover;
mod limits;
mod old_kernel;
mod reacquire;
mod takeover;
mod two_addresses;
mod uninstall;
mod world;
