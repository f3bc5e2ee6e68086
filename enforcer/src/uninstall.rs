//! `enforcer uninstall`: removes everything of ours from the node.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use portmapping_dataplane::Tools;
use portmapping_keeper::wait_for_end;
use portmapping_runtime::deadline::chain;
use portmapping_runtime::{Readiness, ReadyHandle, Supervisor, admin, within};
use tokio::task::spawn_blocking;

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
/// An enforcer that runs would write everything again, so this waits for its end first, and no keeper becomes
/// active before everything is removed. Then it releases the pods in the API, before it removes the rules: no
/// pod claims a port that leads nowhere.
pub fn uninstall(args: &UninstallArgs) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(remove_and_stay(args));
    // what waits for keepers cannot be cancelled, and the pod has few seconds to end
    runtime.shutdown_background();
    outcome
}

async fn remove_and_stay(args: &UninstallArgs) -> anyhow::Result<()> {
    // first: without a handler process 1 of a container ignores the signals
    let mut tasks = Supervisor::install().context("cannot take over signals")?;
    let Some(removed) = tasks.during(Box::pin(remove(args))).await? else {
        bail!("asked to end before everything was removed; run it again");
    };
    removed?;
    if args.stay {
        stay(tasks, args).await
    } else {
        Ok(())
    }
}

async fn remove(args: &UninstallArgs) -> anyhow::Result<()> {
    let run_dir = args.run_dir.clone();
    let waiting = spawn_blocking(move || wait_for_end(&run_dir, KEEPER_END));
    let ended = waiting.await.context("wait for the end of keepers")??;
    match &args.node_name {
        None => tracing::info!("no --node-name: the conditions of the pods stay"),
        Some(node) => {
            // the rules must not stay because the API server does not answer
            let released = within(
                RELEASE_LIMIT,
                "release the node's pods",
                release::release(node),
            );
            if let Err(error) = released.await {
                tracing::warn!(
                    error = chain(&error),
                    "some pods still claim host ports in their condition; removing the rules anyway"
                );
            }
        }
    }
    let removing = spawn_blocking(move || {
        let removed = portmapping_dataplane::uninstall(&Tools::default());
        (removed, ended.clear())
    });
    let (removed, cleared) = removing.await.context("remove the rules")?;
    removed.context("some rules could not be removed; run it again")?;
    cleared?;
    tracing::info!("removed every rule, chain and table of portmapping from this node");
    Ok(())
}

/// Answers the readiness probe until SIGTERM or SIGINT.
async fn stay(mut tasks: Supervisor, args: &UninstallArgs) -> anyhow::Result<()> {
    let token = tasks.token();
    let readiness = Readiness::default();
    let uninstalled: ReadyHandle = readiness.handle("uninstall");
    uninstalled.ready();
    let registry = Arc::new(portmapping_runtime::metrics::registry());
    let router = admin::router(readiness, registry);
    tasks.spawn(
        "admin socket",
        admin::serve(admin_listener(&args.admin_socket)?, router, token),
    );
    Ok(tasks.run().await?)
}
