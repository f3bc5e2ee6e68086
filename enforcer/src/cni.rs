//! The runtime's CNI result cache: it names a pod's addresses before the kubelet does.
//!
//! libcni, which container runtimes are built with, writes one file per attachment when CNI ADD is
//! done, and removes it after CNI DEL. A fast path, never needed: without it the same addresses
//! come with the pod's status, later.
//!
//! ```text
//! /var/lib/cni/results/* --changes--> watch --names--> file --bytes--> result --readings--> known --SandboxUpdate-->
//! ```

pub mod directory_watch;
pub mod file;
pub mod result;
pub mod result_files;
pub mod watch;

pub use watch::{SANDBOX_QUEUE, watch};
