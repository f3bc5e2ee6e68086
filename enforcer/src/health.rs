//! `enforcer health`, and the unix socket that answers it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use portmapping_keeper::DEFAULT_SOCKET;
use portmapping_runtime::admin;
use tokio::net::UnixListener;

use crate::args::{ADMIN_SOCKET, HealthArgs};
use crate::keeper_client::KeeperClient;
use crate::run::runtime;

/// How long a health probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

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

/// Listens on the admin socket. Replaces the file that an earlier process of this pod left.
pub(crate) fn admin_listener(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    UnixListener::bind(path)
        .with_context(|| format!("cannot listen on {} (--admin-socket)", path.display()))
}
