//! `enforcer uninstall`: removes everything of ours from the node.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use portmapping_dataplane::Tools;
use portmapping_runtime::deadline::chain;
use portmapping_runtime::{Readiness, ReadyHandle, Supervisor, admin, within};

use crate::args::UninstallArgs;
use crate::health::admin_listener;
use crate::runtime::runtime;

mod nodes;
mod release;

pub use nodes::uninstall_nodes;

/// How long a keeper may take to end: more than the grace period of its pod.
const KEEPER_END: Duration = Duration::from_secs(45);

/// How long the API server may take for all pods together. A job that cleans all nodes waits for 2 minutes.
const RELEASE_LIMIT: Duration = Duration::from_secs(45);

/// Runs `enforcer uninstall`.
///
/// An enforcer that runs would write everything again, so this waits for its end first. Then it
/// releases the pods in the API, before it removes the rules: no pod claims a port that leads nowhere.
pub fn uninstall(args: &UninstallArgs) -> anyhow::Result<()> {
    let answering = portmapping_keeper::wait_for_end(&args.run_dir, KEEPER_END)
        .context("cannot find out whether a keeper runs on this node")?;
    if let Some(keeper) = answering {
        bail!(
            "portmapping runs on this node: a keeper still answers at {}. Nothing was removed; delete the \
             DaemonSet enforcer first",
            keeper.display()
        );
    }
    match &args.node_name {
        None => tracing::info!("no --node-name: the conditions of the pods stay"),
        Some(node) => {
            // the rules must not stay because the API server does not answer
            let released = within(
                RELEASE_LIMIT,
                "release the node's pods",
                release::release(node),
            );
            if let Err(error) = runtime()?.block_on(released) {
                tracing::warn!(
                    error = chain(&error),
                    "some pods still claim host ports in their condition; removing the rules anyway"
                );
            }
        }
    }
    let removed = portmapping_dataplane::uninstall(&Tools::default());
    clear_run_dir(&args.run_dir);
    removed.context("some rules could not be removed; run it again")?;
    tracing::info!("removed every rule, chain and table of portmapping from this node");
    if args.stay {
        runtime()?.block_on(stay(&args.admin_socket))
    } else {
        Ok(())
    }
}

/// Removes the files in the run directory, then the directory. The directory stays if it is a mount
/// point of this pod.
fn clear_run_dir(run_dir: &Path) {
    for entry in std::fs::read_dir(run_dir).into_iter().flatten().flatten() {
        if let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::warn!(%error, path = %entry.path().display(), "cannot remove a file of the run directory; it stays");
        }
    }
    if let Err(error) = std::fs::remove_dir(run_dir) {
        tracing::debug!(%error, path = %run_dir.display(), "cannot remove the run directory; it stays");
    }
}

/// Answers the readiness probe until SIGTERM or SIGINT.
async fn stay(socket: &Path) -> anyhow::Result<()> {
    let mut tasks = Supervisor::install().context("cannot take over signals")?;
    let token = tasks.token();
    let readiness = Readiness::default();
    let uninstalled: ReadyHandle = readiness.handle("uninstall");
    uninstalled.ready();
    let registry = Arc::new(portmapping_runtime::metrics::registry());
    let router = admin::router(readiness, registry);
    tasks.spawn(
        "admin socket",
        admin::serve(admin_listener(socket)?, router, token),
    );
    Ok(tasks.run().await?)
}
