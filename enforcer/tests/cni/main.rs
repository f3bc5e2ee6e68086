//! The follower of CNI results with a real directory and inotify.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also outside of #[test]

mod directory;
mod files;
mod lab;
mod overflow;
