//! The container runtime's cache of CNI results: it has a pod's addresses before the pod's status
//! has.
//!
//! libcni, which container runtimes are built with, writes one file per attachment after CNI ADD and
//! removes it after CNI DEL. This is a fast path: without it the same addresses come with the pod's
//! status, later.
//!
//! ```text
//! /var/lib/cni/results/* --directory_watch--> watch --names--> file --bytes--> result
//!                                                   Reading --> result_files --SandboxUpdate-->
//! ```

mod directories;
pub mod directory_watch;
mod file;
pub mod result;
mod result_files;
mod watch;

pub use watch::{SANDBOX_QUEUE, watch};
