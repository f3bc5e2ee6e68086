//! `enforcer uninstall`: leaves the node as it was.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use portmapping_dataplane::{Tools, moving};
use portmapping_runtime::{Readiness, ReadyHandle, Shutdown, admin};
use tokio::task::JoinSet;

use crate::args::UninstallArgs;
use crate::health::{admin_listener, serve_admin};
use crate::run::{runtime, supervise};

/// `enforcer uninstall`.
pub fn uninstall(args: &UninstallArgs) -> anyhow::Result<()> {
    let begun = moving::uninstall(&Tools::default());
    clear_run_dir(&args.run_dir);
    begun.context("not everything could be removed; run it again")?;
    tracing::info!("every rule, chain and table of ours is gone from this node");
    if args.stay {
        runtime()?.block_on(stay(&args.admin_socket))
    } else {
        Ok(())
    }
}

/// The directory itself may be a mount point of this very pod: it stays where it cannot go.
fn clear_run_dir(run_dir: &Path) {
    for entry in std::fs::read_dir(run_dir).into_iter().flatten().flatten() {
        if let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::warn!(%error, path = %entry.path().display(), "could not be removed");
        }
    }
    if let Err(error) = std::fs::remove_dir(run_dir) {
        tracing::debug!(%error, path = %run_dir.display(), "left in place");
    }
}

async fn stay(socket: &Path) -> anyhow::Result<()> {
    let shutdown = Shutdown::install().context("cannot take over signals")?;
    let token = shutdown.token();
    let readiness = Readiness::default();
    let done: ReadyHandle = readiness.handle("uninstall");
    done.ready();
    let registry = Arc::new(portmapping_runtime::metrics::registry());
    let router = admin::router(readiness, registry);
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_admin(admin_listener(socket)?, router, token.clone()));
    supervise(tasks, shutdown, token).await
}
