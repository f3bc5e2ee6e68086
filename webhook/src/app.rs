//! Starts the program's tasks and ends them together.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use portmapping_certs::bundle::WebhookRegistration;
use portmapping_certs::secret::SecretStore;
use portmapping_certs::{CertManager, Files, Metrics as CertMetrics, Reports, Resolver};
use portmapping_runtime::client::{ApiServer, ClientError};
use portmapping_runtime::{Readiness, ReadyHandle, Supervisor, admin, metrics as registry};
use tokio_util::sync::CancellationToken;

use crate::args::Config;
use crate::metrics::Metrics;
use crate::routes;
use crate::server::{self, Ending};

/// Longest wait for the next byte of the API server within a call.
const API_READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The same within a watch; bookmarks come once a minute.
const API_WATCH_READ_TIMEOUT: Duration = Duration::from_secs(90);

/// Runs until a signal. A second signal, or a task that ends early, is an error.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut tasks = Supervisor::install().context("cannot install the signal handlers")?;

    let readiness = Readiness::default();
    let accepting = readiness.handle("server");
    let (metrics, cert_metrics) = (Metrics::default(), CertMetrics::default());
    let mut names = registry::registry();
    metrics.register(&mut names);
    cert_metrics.register(&mut names);

    let resolver = Arc::new(Resolver::default());
    // health and metrics are served until the last review has its response
    let served = CancellationToken::new();
    certificates(
        &mut tasks,
        &config,
        &readiness,
        Arc::clone(&resolver),
        cert_metrics,
        served.clone(),
    );

    let https = server::listen(config.listen)?;
    let plain = server::listen(config.admin_listen)?;
    tracing::info!(webhook = ?https.local_addr()?, admin = ?plain.local_addr()?, "listening");
    let ending = Ending::default();

    let routes = admin::router(readiness, Arc::new(names));
    tasks.spawn("health", admin::serve(plain, routes, served.clone()));
    let finish = finish(tasks.token(), accepting, ending.clone(), config.drain_delay);
    tasks.spawn("drain", finish);
    let webhook = server::serve(
        https,
        server::tls_config(resolver),
        routes::router(config.reviews, metrics.clone()),
        config.server,
        ending,
        metrics,
    );
    tasks.spawn("reviews", async move {
        webhook.await;
        served.cancel();
    });
    tasks.run().await?;
    tracing::info!("all tasks ended; exiting");
    Ok(())
}

/// Starts the task that provides the certificate until `served` is cancelled: from files that
/// another program renews, or from our own manager, which needs the API server.
fn certificates(
    tasks: &mut Supervisor,
    config: &Config,
    readiness: &Readiness,
    resolver: Arc<Resolver>,
    metrics: CertMetrics,
    served: CancellationToken,
) {
    let certificate = readiness.handle("certificate");
    if let Some(folder) = &config.tls_dir {
        let names = config.certificates.names.clone();
        let files = Files::new(folder.clone(), names, resolver, certificate, metrics);
        tasks.spawn("certificates", files.run(served));
        return;
    }
    let reports = Reports {
        certificate,
        registration: readiness.handle("registration"),
        metrics,
    };
    tasks.try_spawn(
        "certificates",
        manage(config.clone(), resolver, reports, served),
    );
}

/// Runs the manager of the certificate, and starts it again with a new client when the cluster's CA
/// has changed. The program itself goes on: replicas that ended at about the same time would leave
/// reviews without an answer.
async fn manage(
    config: Config,
    resolver: Arc<Resolver>,
    reports: Reports,
    served: CancellationToken,
) -> Result<(), ClientError> {
    let mut before: Option<CertManager<_, _>> = None;
    while !served.is_cancelled() {
        let api = ApiServer::in_cluster()?;
        let client = api.client(API_READ_TIMEOUT)?;
        let store = SecretStore::new(client.clone(), &config.namespace, &config.tls_secret);
        let registration = WebhookRegistration::new(
            client,
            api.watch_client(API_WATCH_READ_TIMEOUT)?,
            &config.registration,
            &config.service,
            &config.namespace,
        );
        let manager = match before.take() {
            Some(manager) => manager.with_clients(store, registration),
            None => CertManager::new(
                config.certificates.clone(),
                store,
                registration,
                Arc::clone(&resolver),
                reports.clone(),
            ),
        };
        let same_ca = served.child_token();
        let (manager, ()) = tokio::join!(manager.run(same_ca.clone()), api.end_on_new_ca(same_ca));
        before = Some(manager);
    }
    Ok(())
}

/// Runs the shutdown. The program is not ready first, so that endpoints are updated while reviews
/// are still accepted.
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
