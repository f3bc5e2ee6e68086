//! The tokio runtime of the program.

use anyhow::Context;

/// Returns the tokio runtime of every subcommand.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    // one thread: the program mostly waits, and each further thread costs memory on every node
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the tokio runtime")
}
