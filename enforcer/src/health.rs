//! Health: the admin server, and the probe that asks it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use portmapping_keeper::DEFAULT_SOCKET;
use portmapping_runtime::admin;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::args::{ADMIN_SOCKET, HealthArgs};
use crate::keeper_client::Keeper;
use crate::run::runtime;

/// How long a health probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// `enforcer health`.
pub fn health(args: &HealthArgs) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        if args.keeper {
            let socket = args.socket.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET));
            Keeper::connect(socket, PROBE_LIMIT).await?;
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

/// A socket that an earlier process left behind in this pod is in the way.
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

pub(crate) async fn serve_admin<L: axum::serve::Listener>(
    listener: L,
    router: axum::Router,
    token: CancellationToken,
) -> anyhow::Result<()> {
    admin::serve(listener, router, token).await;
    Ok(())
}
