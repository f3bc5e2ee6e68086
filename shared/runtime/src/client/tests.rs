//! A connection that has gone silent is watched by the kernel.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpListener;

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

#[tokio::test]
async fn a_silent_connection_is_asked_whether_it_lives() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let folder = TempDir::new().unwrap();
    let authority = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap();
    let [ca, token] = [
        ("ca.crt", authority.cert.pem()),
        ("token", "token".to_owned()),
    ]
    .map(|(file, text)| {
        let path = folder.path().join(file);
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
    let client = build(server, credentials, Duration::from_mins(1));
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
