//! Connections that have gone silent are watched by the kernel, and a watch has one of its own.

use std::net::Ipv4Addr;
use std::path::Path;
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

/// A certificate that vouches for itself.
fn certificate() -> CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap()
}

fn client(folder: &Path, ca: &str, port: u16, connections: Connections) -> Client {
    let [ca, token] = [("ca.crt", ca), ("token", "token")].map(|(file, text)| {
        let path = folder.join(file);
        std::fs::write(&path, text).unwrap();
        path
    });
    let credentials = Credentials {
        trust: Trust::read(ca).unwrap(),
        token: Token::read(token).unwrap(),
    };
    let server = Server {
        uri: format!("https://127.0.0.1:{port}").parse().unwrap(),
        namespace: "default".to_owned(),
    };
    build(server, credentials, connections, Duration::from_mins(1))
}

#[tokio::test]
async fn a_silent_connection_is_asked_whether_it_lives() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let folder = TempDir::new().unwrap();
    let ca = certificate().cert.pem();
    let client = client(folder.path(), &ca, port, Connections::Kept);
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

#[tokio::test]
async fn a_request_has_a_connection_of_its_own_if_it_wants_one() {
    for (connections, expected) in [(Connections::Kept, 1), (Connections::New, 3)] {
        let CertifiedKey { cert, signing_key } = certificate();
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
        let folder = TempDir::new().unwrap();
        let client = client(folder.path(), &cert.pem(), port, connections);
        for _ in 0..3 {
            client.apiserver_version().await.unwrap();
            // a connection is kept once its answer was read to the end
            tokio::task::yield_now().await;
        }
        assert_eq!(count.load(Ordering::Relaxed), expected, "{connections:?}");
    }
}
