//! Which listener answers what.

use portmapping_dataplane::Backend;
use portmapping_dataplane::detect::Chosen;
use portmapping_enforcer_core::{Config, NodeState, Recovered};
use portmapping_shared::PortSet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::masquerade::Decision;

const LIMIT: Duration = Duration::from_secs(30);

fn config() -> Config {
    Config {
        range: "20000-20009".parse().unwrap(),
        excluded: PortSet::default(),
        cooldown: Duration::ZERO,
        quarantine: Duration::ZERO,
        max_ports: 1,
        max_cooling: 4,
        namespace_share: 25,
        ipv6: false,
        epoch: Duration::ZERO,
    }
}

async fn get_over_tcp(address: std::net::SocketAddr, route: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {route} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn state_is_served_on_the_unix_socket_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let (requests, mut received) = mpsc::channel::<StateRequest>(1);
    let routers = Routers::new(Readiness::default(), Registry::default(), requests);
    let token = CancellationToken::new();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let unix = admin_listener(&path).unwrap();
    tokio::spawn(admin::serve(unix, routers.unix, token.clone()));
    tokio::spawn(admin::serve(tcp, routers.tcp, token.clone()));
    tokio::spawn(async move {
        while let Some(request) = received.recv().await {
            let state = NodeState::recover(config(), 1, Duration::ZERO, Recovered::default());
            let backend = Chosen {
                backend: Backend::Nftables,
                reason: "a test".to_owned(),
                cause: "iptables works",
                automatic: true,
            };
            let masquerade = Some(Decision {
                on: true,
                reason: "a flag".to_owned(),
                is_unknown: false,
            });
            request.send((state.status(), backend, masquerade)).unwrap();
        }
    });

    let answer = admin::probe(&path, "/state", LIMIT).await.unwrap();
    assert_eq!(answer.status, 200);
    for shown in [
        r#""backend": "nftables""#,
        r#""masquerade": true"#,
        r#""masqueradeReason": "a flag""#,
    ] {
        assert!(answer.body.contains(shown), "{shown}: {}", answer.body);
    }
    for (route, status) in [
        ("/state", " 404 "),
        ("/healthz", " 200 "),
        ("/metrics", " 200 "),
    ] {
        let answer = get_over_tcp(address, route).await;
        let first = answer.lines().next().unwrap_or_default();
        assert!(first.contains(status), "{route}: {first}");
    }
    token.cancel();
}
