//! `enforcer health` and `enforcer status`, and the unix socket that answers them.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use portmapping_keeper::DEFAULT_SOCKET;
use portmapping_runtime::{Readiness, admin};
use portmapping_shared::remedy;
use prometheus_client::registry::Registry;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use crate::args::{ADMIN_SOCKET, HealthArgs, StatusArgs};
use crate::keeper_client::KeeperClient;
use crate::reconciler::StateRequest;
use crate::runtime::runtime;
use crate::state;

/// How long a health probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(3);
/// How long `enforcer status` waits; longer than the enforcer's own limit for its answer.
const STATUS_LIMIT: Duration = Duration::from_secs(8);

/// Runs `enforcer health`: fails if the program that it asks does not answer, or is not ready.
pub fn health(args: &HealthArgs) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        if args.keeper {
            let socket = args.socket.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET));
            KeeperClient::connect(socket, PROBE_LIMIT).await?;
            return Ok(());
        }
        let socket = args.socket.as_deref().unwrap_or(Path::new(ADMIN_SOCKET));
        let route = if args.ready { "/readyz" } else { "/healthz" };
        let answer = admin::probe(socket, route, PROBE_LIMIT).await?;
        if answer.status != 200 {
            bail!("{}", answer.body.trim());
        }
        Ok(())
    })
}

/// Runs `enforcer status`: prints the answer of `GET /state`.
pub fn status(args: &StatusArgs) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let answer = admin::probe(&args.socket, "/state", STATUS_LIMIT).await?;
        let body = answer.body.trim();
        if answer.status != 200 {
            bail!("{body}");
        }
        writeln!(std::io::stdout(), "{body}").context("cannot print the state")
    })
}

/// What the enforcer answers on each of its listeners.
pub(crate) struct Routers {
    /// On the admin socket: health, metrics and state.
    pub(crate) unix: Router,
    /// On TCP: health and metrics. Not the state: it has the names and uids of pods.
    pub(crate) tcp: Router,
}

impl Routers {
    pub(crate) fn new(
        readiness: Readiness,
        registry: Registry,
        state_requests: mpsc::Sender<StateRequest>,
    ) -> Self {
        let tcp = admin::router(readiness, Arc::new(registry));
        Self {
            unix: tcp.clone().merge(state::router(state_requests)),
            tcp,
        }
    }
}

/// Listens on the admin socket. Replaces the file that an earlier process of this pod left.
pub(crate) fn admin_listener(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let text = format!("cannot replace {}{}", path.display(), remedy(&error));
            return Err(error).context(text);
        }
        _ => {}
    }
    UnixListener::bind(path).map_err(|error| {
        let (path, remedy) = (path.display(), remedy(&error));
        let text = format!("cannot listen on {path} (--admin-socket){remedy}");
        anyhow::Error::new(error).context(text)
    })
}

#[cfg(test)]
mod tests;
