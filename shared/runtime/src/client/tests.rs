//! The kernel probes silent connections, a watch has a connection of its own, and a new CA ends
//! the program.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rcgen::CertifiedKey;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const IDLE: Duration = Duration::from_mins(1);
/// PEM text that is no certificate inside.
const NO_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
/// How the kernel lists the timer of a connection that is watched.
const KEEPALIVE_TIMER: &str = "02:";

/// The timers of this machine's connections to a port.
fn timers(port: u16) -> Vec<String> {
    let to = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let columns = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    columns
        .filter(|columns| columns.get(2).is_some_and(|remote| remote.ends_with(&to)))
        .filter_map(|columns| columns.get(5).map(|timer| (*timer).to_owned()))
        .collect()
}

/// A certificate that signs itself.
fn certificate() -> CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap()
}

/// What `Config::incluster` returns in a pod whose CA file holds this text.
fn config(folder: &Path, ca: &str, port: u16) -> Config {
    let [ca, token] = [("ca.crt", ca), ("token", "token")].map(|(file, text)| {
        let path = folder.join(file);
        fs::write(&path, text).unwrap();
        path
    });
    let mut config = Config::new(format!("https://127.0.0.1:{port}").parse().unwrap());
    config.root_cert = Some(read(&ca).unwrap());
    config.root_cert_file = Some(ca);
    config.auth_info.token_file = Some(token.display().to_string());
    config
}

fn api_server(folder: &Path, ca: &str, port: u16) -> ApiServer {
    ApiServer::new(config(folder, ca, port)).unwrap()
}

#[tokio::test]
async fn a_silent_connection_is_asked_whether_it_lives() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let folder = TempDir::new().unwrap();
    let ca = certificate().cert.pem();
    let api = api_server(folder.path(), &ca, port);
    let client = api.client(IDLE).unwrap();
    let asking = tokio::spawn(async move { client.apiserver_version().await });
    // accepted and never answered, as by a watch without news
    let (_silent, _) = listener.accept().await.unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while !timers(port)
        .iter()
        .any(|timer| timer.starts_with(KEEPALIVE_TIMER))
    {
        assert!(Instant::now() < end, "no keepalive: {:?}", timers(port));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    asking.abort();
}

/// Answers every request with a version, as often as asked; counts connections.
async fn versions(listener: TcpListener, acceptor: TlsAcceptor, count: Arc<AtomicUsize>) {
    let answer = r#"{"major":"1","minor":"36","gitVersion":"v","gitCommit":"c","gitTreeState":"s",
        "buildDate":"d","goVersion":"g","compiler":"c","platform":"p"}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}",
        answer.len()
    );
    while let Ok((stream, _)) = listener.accept().await {
        count.fetch_add(1, Ordering::Relaxed);
        let mut stream = acceptor.accept(stream).await.unwrap();
        let answer = answer.clone();
        tokio::spawn(async move {
            let mut request = [0; 4096];
            // a request of this client fits into one record
            while matches!(stream.read(&mut request).await, Ok(1..)) {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
    }
}

/// Starts an API server on loopback that has this certificate; returns its port and the number of
/// its connections.
async fn server(
    CertifiedKey { cert, signing_key }: &CertifiedKey<rcgen::KeyPair>,
) -> (u16, Arc<AtomicUsize>) {
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(versions(listener, acceptor, Arc::clone(&count)));
    (port, count)
}

#[tokio::test]
async fn watches_have_connections_of_their_own_and_calls_share_one() {
    for (shared, expected) in [(true, 1), (false, 3)] {
        let ours = certificate();
        let (port, count) = server(&ours).await;
        let folder = TempDir::new().unwrap();
        let api = api_server(folder.path(), &ours.cert.pem(), port);
        let client = if shared {
            api.client(IDLE)
        } else {
            api.watch_client(IDLE)
        };
        let client = client.unwrap();
        for _ in 0..3 {
            client.apiserver_version().await.unwrap();
            // a connection is kept once its answer was read to the end
            tokio::task::yield_now().await;
        }
        assert_eq!(count.load(Ordering::Relaxed), expected, "shared: {shared}");
    }
}

#[tokio::test]
async fn only_servers_that_the_ca_identifies_are_used() {
    let (ours, other) = (certificate(), certificate());
    let (port, _count) = server(&other).await;
    let folder = TempDir::new().unwrap();
    let api = api_server(folder.path(), &ours.cert.pem(), port);
    let client = api.client(IDLE).unwrap();
    client.apiserver_version().await.unwrap_err();
}

#[tokio::test]
async fn a_certificate_that_rustls_refuses_is_skipped() {
    let ours = certificate();
    let (port, _count) = server(&ours).await;
    let folder = TempDir::new().unwrap();
    let bundle = format!("{NO_CERTIFICATE}{}", ours.cert.pem());
    let api = api_server(folder.path(), &bundle, port);
    let client = api.client(IDLE).unwrap();
    client.apiserver_version().await.unwrap();

    let error = ApiServer::new(config(folder.path(), NO_CERTIFICATE, port)).unwrap_err();
    assert!(error.to_string().contains("ca.crt"), "{error}");
}

#[test]
fn a_service_account_without_a_token_is_an_error() {
    let folder = TempDir::new().unwrap();
    let mut config = config(folder.path(), &certificate().cert.pem(), 1);
    config.auth_info.token_file = Some(folder.path().join("none").display().to_string());
    let client = ApiServer::new(config).unwrap().client(IDLE);
    assert!(matches!(client, Err(ClientError::Credentials(_))));
}

#[tokio::test(start_paused = true)]
async fn the_program_ends_when_the_ca_has_changed_and_the_wait_is_over() {
    let folder = TempDir::new().unwrap();
    let (first, second) = (certificate().cert.pem(), certificate().cert.pem());
    let ca = api_server(folder.path(), &first, 1).ca;
    let path = ca.path.clone();
    let token = CancellationToken::new();
    let wait = CA_PERIOD * 3;
    let mut ending = tokio::spawn(ca.end_on_change(wait, token.clone()));
    // the same certificates, none, none that can be used, and no file at all
    let unusable = NO_CERTIFICATE.to_owned();
    for same in [format!("# a comment\n{first}"), String::new(), unusable] {
        fs::write(&path, same).unwrap();
        tokio::time::timeout(CA_PERIOD * 2, &mut ending)
            .await
            .unwrap_err();
    }
    fs::remove_file(&path).unwrap();
    tokio::time::timeout(CA_PERIOD * 2, &mut ending)
        .await
        .unwrap_err();

    fs::write(&path, first + &second).unwrap();
    let changed = tokio::time::Instant::now();
    ending.await.unwrap();
    assert!(token.is_cancelled());
    // virtual time
    let range = wait..=wait + CA_PERIOD;
    assert!(
        range.contains(&changed.elapsed()),
        "{:?}",
        changed.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_program_that_ends_does_not_wait_for_the_ca() {
    let folder = TempDir::new().unwrap();
    let ca = api_server(folder.path(), &certificate().cert.pem(), 1).ca;
    fs::write(&ca.path, certificate().cert.pem()).unwrap();
    let token = CancellationToken::new();
    let ending = tokio::spawn(ca.end_on_change(CA_WAIT, token.clone()));
    tokio::task::yield_now().await;
    token.cancel();
    let started = tokio::time::Instant::now();
    ending.await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
}
