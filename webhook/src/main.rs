//! The admission webhook of portmapping: see the library of this crate.

use anyhow::anyhow;
use clap::Parser;
use dlmalloc::GlobalDlmalloc;
use portmapping_webhook::{Args, app};

// of a large review's processor time, half went into musl's own mapping and unmapping memory
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow!("a cryptography provider is installed already"))?;
    let (log, config) = Args::parse().into_config()?;
    portmapping_runtime::log::init(&log);
    app::run(config).await
}
