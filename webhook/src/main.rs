//! The admission webhook of portmapping; the library of this crate does the work.

use anyhow::anyhow;
use clap::Parser;
use dlmalloc::GlobalDlmalloc;
use portmapping_webhook::{Args, app};

// musl's allocator maps and unmaps memory for each large buffer: half of a large review's CPU time
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| {
            anyhow!("cannot install the cryptography provider: another one is installed")
        })?;
    let (log, config) = Args::parse().into_config()?;
    portmapping_runtime::log::init(&log);
    app::run(config).await
}
