//! Turns flags and environment into a validated [`Config`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use clap::Parser;
use clap::builder::RangedU64ValueParser;
use portmapping_certs::{Lifetimes, Names};
use portmapping_runtime::flags::duration;
use portmapping_runtime::log::LogArgs;
use portmapping_shared::contract;

use crate::routes;
use crate::server::{self, IdleTimeouts};

/// Shortest lifetime of a certificate: X.509 has a resolution of one second.
const MIN_LIFETIME: Duration = Duration::from_secs(5);
/// Longer than a Go client keeps an idle connection, which is 90 s: see [`IdleTimeouts::idle`].
const IDLE: Duration = Duration::from_secs(150);

/// Admission webhook of portmapping.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Address of the webhook (HTTPS)
    #[arg(long, env = "PORTMAPPING_LISTEN", default_value = "[::]:8443")]
    listen: SocketAddr,
    /// Address of /healthz, /readyz and /metrics (HTTP)
    #[arg(long, env = "PORTMAPPING_ADMIN_LISTEN", default_value = "[::]:8081")]
    admin_listen: SocketAddr,
    /// Namespace of the service and the Secret
    #[arg(long, env = "POD_NAMESPACE", default_value = contract::NAMESPACE)]
    namespace: String,
    /// Service in front of the webhook
    #[arg(long, env = "PORTMAPPING_SERVICE", default_value = contract::WEBHOOK_SERVICE)]
    service: String,
    /// Folder with tls.crt and tls.key that another program renews, such as cert-manager; this
    /// program then issues and registers nothing
    #[arg(long, env = "PORTMAPPING_TLS_DIR")]
    tls_dir: Option<PathBuf>,
    /// Secret through which the replicas share their certificate
    #[arg(long, env = "PORTMAPPING_TLS_SECRET", default_value = contract::TLS_SECRET)]
    tls_secret: String,
    /// Name of the mutating webhook configuration whose caBundle this program maintains
    #[arg(long, env = "PORTMAPPING_REGISTRATION", default_value = contract::WEBHOOK_CONFIGURATION)]
    registration: String,
    /// Lifetime of the certificate authority
    #[arg(long, env = "PORTMAPPING_CA_LIFETIME", value_parser = duration, default_value = "3650d")]
    ca_lifetime: Duration,
    /// Lifetime of the serving certificate, renewed after two thirds
    #[arg(long, env = "PORTMAPPING_LEAF_LIFETIME", value_parser = duration, default_value = "365d")]
    leaf_lifetime: Duration,
    /// Time between two checks of Secret, registration and certificate; at most a tenth of
    /// --leaf-lifetime
    #[arg(long, env = "PORTMAPPING_CERT_PERIOD", value_parser = duration, default_value = "15s")]
    cert_period: Duration,
    /// Ports that one pod may ask for; at most 128
    #[arg(long, env = "PORTMAPPING_MAX_PORTS", default_value_t = contract::DEFAULT_MAX_PORTS, value_parser = RangedU64ValueParser::<usize>::new().range(1..=contract::MOST_PORTS))]
    max_ports: usize,
    /// Longest review, in bytes
    #[arg(long, env = "PORTMAPPING_MAX_BODY_BYTES", default_value_t = 3 * 1024 * 1024)]
    max_body_bytes: u32,
    /// Time for one review; keep it below the registration's timeoutSeconds
    #[arg(long, env = "PORTMAPPING_DEADLINE", value_parser = duration, default_value = "4s")]
    deadline: Duration,
    /// Time for a TLS handshake
    #[arg(long, env = "PORTMAPPING_HANDSHAKE_TIMEOUT", value_parser = duration, default_value = "3s")]
    handshake_timeout: Duration,
    /// Time from a connection's start to its first request
    #[arg(long, env = "PORTMAPPING_HEADER_TIMEOUT", value_parser = duration, default_value = "5s")]
    header_timeout: Duration,
    /// Connections at once. One more closes one of the address with the most: first one that never sent
    /// a request, then the longest idle one
    #[arg(long, env = "PORTMAPPING_MAX_CONNECTIONS", default_value_t = 512)]
    max_connections: usize,
    /// Time after SIGTERM during which new connections are accepted, while endpoints are updated
    #[arg(long, env = "PORTMAPPING_DRAIN_DELAY", value_parser = duration, default_value = "5s")]
    drain_delay: Duration,
    /// Time after that for reviews in progress
    #[arg(long, env = "PORTMAPPING_DRAIN_TIMEOUT", value_parser = duration, default_value = "10s")]
    drain_timeout: Duration,
    #[command(flatten)]
    log: LogArgs,
}

/// The validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address of the webhook.
    pub listen: SocketAddr,
    /// Address of health and metrics.
    pub admin_listen: SocketAddr,
    /// Namespace of service and Secret.
    pub namespace: String,
    /// Name of the service.
    pub service: String,
    /// Folder with the certificate. None: the replicas issue, share and register one.
    pub tls_dir: Option<PathBuf>,
    /// Name of the Secret.
    pub tls_secret: String,
    /// Name of the registration.
    pub registration: String,
    /// Names, lifetimes and check period of the certificates.
    pub certificates: portmapping_certs::Config,
    /// Limits of a review.
    pub reviews: routes::Limits,
    /// Limits of the server.
    pub server: server::Limits,
    /// Time from "not ready" to the start of draining.
    pub drain_delay: Duration,
}

impl Args {
    /// Checks what clap cannot check and groups the flags by component.
    pub fn into_config(self) -> anyhow::Result<(LogArgs, Config)> {
        let Self {
            listen,
            admin_listen,
            namespace,
            service,
            tls_dir,
            tls_secret,
            registration,
            ca_lifetime,
            leaf_lifetime,
            cert_period,
            max_ports,
            max_body_bytes,
            deadline,
            handshake_timeout,
            header_timeout,
            max_connections,
            drain_delay,
            drain_timeout,
            log,
        } = self;
        ensure!(
            leaf_lifetime >= MIN_LIFETIME,
            "--leaf-lifetime must be at least {MIN_LIFETIME:?}"
        );
        ensure!(
            ca_lifetime >= leaf_lifetime,
            "--ca-lifetime must be at least --leaf-lifetime"
        );
        ensure!(!cert_period.is_zero(), "--cert-period must not be zero");
        ensure!(max_connections > 0, "--max-connections must not be zero");
        let timeouts = IdleTimeouts {
            first: header_timeout,
            idle: IDLE,
            busy: deadline + Duration::from_secs(5),
        };
        let config = Config {
            listen,
            admin_listen,
            certificates: portmapping_certs::Config {
                names: Names::of_service(&service, &namespace),
                lifetimes: Lifetimes {
                    ca: ca_lifetime,
                    leaf: leaf_lifetime,
                },
                period: cert_period,
            },
            namespace,
            service,
            tls_dir,
            tls_secret,
            registration,
            reviews: routes::Limits {
                body_bytes: max_body_bytes,
                deadline,
                max_ports,
            },
            server: server::Limits {
                handshake: handshake_timeout,
                timeouts,
                connections: max_connections,
                drain: drain_timeout,
            },
            drain_delay,
        };
        Ok((log, config))
    }
}

#[cfg(test)]
mod tests;
