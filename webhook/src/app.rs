//! The program: three tasks that live and end together.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use portmapping_certs::bundle::WebhookRegistration;
use portmapping_certs::secret::SecretStore;
use portmapping_certs::{CertManager, Files, Metrics as CertMetrics, Reports, Resolver};
use portmapping_runtime::client::Connections;
use portmapping_runtime::{Readiness, ReadyHandle, Shutdown, admin, client, metrics as registry};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::args::Config;
use crate::metrics::Metrics;
use crate::routes;
use crate::server::{self, Ending};

/// Longest silence of the API server within a call.
const API_READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs until a signal; a second one, or the end of a task before its time, is an error.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let shutdown = Shutdown::install().context("cannot take over the signals")?;
    let asked_to_end = shutdown.token();

    let readiness = Readiness::default();
    let accepting = readiness.handle("server");
    let (metrics, cert_metrics) = (Metrics::default(), CertMetrics::default());
    let mut names = registry::registry();
    metrics.register(&mut names);
    cert_metrics.register(&mut names);

    let resolver = Arc::new(Resolver::default());
    // health and metrics answer to the end
    let served = CancellationToken::new();
    let certificates = certificates(
        &config,
        &readiness,
        Arc::clone(&resolver),
        cert_metrics,
        served.clone(),
    )?;

    let https = server::listen(config.listen)?;
    let plain = server::listen(config.admin_listen)?;
    tracing::info!(webhook = ?https.local_addr()?, admin = ?plain.local_addr()?, "listening");
    let ending = Ending::default();

    let mut tasks = JoinSet::new();
    let routes = admin::router(readiness, Arc::new(names));
    tasks.spawn(admin::serve(plain, routes, served.clone()));
    tasks.spawn(certificates);
    tasks.spawn(finish(
        asked_to_end.clone(),
        accepting,
        ending.clone(),
        config.drain_delay,
    ));
    let webhook = server::serve(
        https,
        server::tls_config(resolver),
        routes::router(config.reviews, metrics.clone()),
        config.server,
        ending,
        metrics,
    );
    tokio::select! {
        () = webhook => {}
        () = shutdown.until_forced() => bail!("ended by a second signal"),
        // `finish` ends when draining begins, the others only when told
        Some(ended) = first_failure(&mut tasks, &asked_to_end) => bail!("a task ended early: {ended}"),
    }
    served.cancel();
    while tasks.join_next().await.is_some() {}
    tracing::info!("ended");
    Ok(())
}

/// What keeps a certificate served until the token is cancelled: files that something else renews,
/// or a manager of our own.
fn certificates(
    config: &Config,
    readiness: &Readiness,
    resolver: Arc<Resolver>,
    metrics: CertMetrics,
    token: CancellationToken,
) -> anyhow::Result<Pin<Box<dyn Future<Output = ()> + Send>>> {
    let certificate = readiness.handle("certificate");
    if let Some(folder) = &config.tls_dir {
        let names = config.certificates.names.clone();
        let files = Files::new(folder.clone(), names, resolver, certificate, metrics);
        return Ok(Box::pin(files.run(token)));
    }
    let client = client::connect(Connections::Kept, API_READ_TIMEOUT)?;
    let reports = Reports {
        certificate,
        registration: readiness.handle("registration"),
        metrics,
    };
    let manager = CertManager::new(
        config.certificates.clone(),
        SecretStore::new(client.clone(), &config.namespace, &config.tls_secret),
        WebhookRegistration::new(
            client,
            &config.registration,
            &config.service,
            &config.namespace,
        ),
        resolver,
        reports,
    );
    Ok(Box::pin(manager.run(token)))
}

/// Readiness goes first, so that endpoints move while reviews are still accepted.
async fn finish(
    asked_to_end: CancellationToken,
    accepting: ReadyHandle,
    ending: Ending,
    delay: Duration,
) {
    accepting.ready();
    asked_to_end.cancelled().await;
    accepting.wait_for("draining");
    ending.closing.cancel();
    tokio::time::sleep(delay).await;
    ending.draining.cancel();
}

/// Waits for a task that ends without having been asked to; None once all have ended as asked.
async fn first_failure(
    tasks: &mut JoinSet<()>,
    asked_to_end: &CancellationToken,
) -> Option<String> {
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Err(error) => return Some(error.to_string()),
            Ok(()) if !asked_to_end.is_cancelled() => return Some("no error".to_owned()),
            Ok(()) => {}
        }
    }
    None
}
