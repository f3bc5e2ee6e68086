//! The keeper with clients that crash, stall or send invalid requests.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portmapping_enforcer::keeper_client::{KeeperClient, KeeperClientError, RoleWatch};
use portmapping_keeper::wire::{HoldOutcome, KeeperRole, MAX_FRAME, Reply};
use portmapping_shared::Protocol::{Tcp, Udp};

use crate::world::{KeeperProcess, Node, block_on, eventually, in_netns, patience, ports, soon};

/// A raw connection, after the greeting.
fn raw(keeper: &KeeperProcess) -> UnixStream {
    let mut stream = UnixStream::connect(&keeper.socket).unwrap();
    stream.set_read_timeout(Some(soon())).unwrap();
    assert!(matches!(reply(&mut stream), Reply::Hello { v: 1, .. }));
    stream
}

fn reply(stream: &mut UnixStream) -> Reply {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).unwrap();
    let mut json = vec![0; u32::from_be_bytes(prefix) as usize];
    stream.read_exact(&mut json).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn frame(json: &str) -> Vec<u8> {
    let length = u32::try_from(json.len()).unwrap();
    [&length.to_be_bytes(), json.as_bytes()].concat()
}

#[test]
fn ports_stay_held_when_the_client_crashes() {
    in_netns(|| {
        let node = Node::new();
        let keeper = node.keeper("a");
        let mut client = client_process(&keeper, 0, &std::env::current_exe().unwrap());
        let held = eventually("the client process holds", || {
            keeper.list().filter(|ports| ports.len() == 300)
        });
        client.kill().unwrap();
        client.wait().unwrap();
        assert_eq!(keeper.list().unwrap(), held);
        keeper.hold(&held);
    });
}

#[test]
fn other_users_are_not_served() {
    in_netns(|| {
        let node = Node::new();
        let keeper = node.keeper("a");
        let mode = fs::metadata(&keeper.socket).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        // all permissions are open, so that only the check of credentials is left; the copy of this
        // program is one that another user can execute
        fs::set_permissions(node.path("."), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&keeper.socket, Permissions::from_mode(0o666)).unwrap();
        let copy = node.path("client");
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        let status = client_process(&keeper, 65534, &copy).wait().unwrap();
        assert!(!status.success(), "served another user");
        assert!(keeper.log().contains("another user"));
        assert_eq!(keeper.list().unwrap(), []);
    });
}

/// Starts [`client`] in a process of its own.
fn client_process(
    keeper: &KeeperProcess,
    uid: u32,
    program: &std::path::Path,
) -> std::process::Child {
    Command::new(program)
        .args(["--exact", "clients::client", "--ignored"])
        .env("KEEPER_SOCKET", &keeper.socket)
        .uid(uid)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "a client process for other tests"]
fn client() {
    let Some(socket) = std::env::var_os("KEEPER_SOCKET") else {
        return;
    };
    let mut client = block_on(KeeperClient::connect(
        socket,
        patience(Duration::from_secs(2)),
    ))
    .unwrap();
    block_on(client.hold(&ports(Tcp, 21000, 300))).unwrap();
    loop {
        std::thread::park(); // until killed
    }
}

#[test]
fn an_invalid_request_gets_an_error_and_closes_only_its_connection() {
    in_netns(|| {
        let node = Node::new();
        let keeper = node.keeper("a");
        keeper.hold(&ports(Tcp, 20000, 1));
        let mut polite = keeper.client();
        let ports_1025 = vec![r#"["TCP",20000]"#; 1025].join(",");
        let nested = "[".repeat(5000);
        for (bytes, expected) in [
            (frame("nonsense"), "expected"),
            (frame(""), "EOF"),
            (frame(&nested), "line 1"),
            (
                frame(r#"{"v":1,"request":{"hold":[["TCP",0]]}}"#),
                "nonzero",
            ),
            (
                frame(r#"{"v":1,"request":{"hold":[["TCP",65536]]}}"#),
                "65536",
            ),
            (
                frame(r#"{"v":1,"request":{"hold":[["tcp",20001]]}}"#),
                "tcp",
            ),
            (frame(r#"{"v":1,"request":{"steal":[]}}"#), "steal"),
            (
                frame(r#"{"v":2,"request":"watch"}"#),
                "version 2 is unknown",
            ),
            (
                frame(&format!(r#"{{"v":1,"request":{{"hold":[{ports_1025}]}}}}"#)),
                "1025 ports",
            ),
            (u32::MAX.to_be_bytes().to_vec(), "4294967295 bytes"),
            (
                u32::try_from(MAX_FRAME + 1).unwrap().to_be_bytes().to_vec(),
                "65537 bytes",
            ),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "over the limit"),
        ] {
            let mut stream = raw(&keeper);
            stream.write_all(&bytes).unwrap();
            let Reply::Error(message) = reply(&mut stream) else {
                panic!("no error")
            };
            assert!(message.contains(expected), "{message}");
            // closed: the end, or a reset where the keeper left bytes unread
            assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
            assert_eq!(block_on(polite.list()).unwrap().len(), 1);
        }
        // unknown fields belong to later versions
        let mut stream = raw(&keeper);
        let newer = r#"{"v":1,"why":"later","request":{"hold":[["TCP",20001]]}}"#;
        stream.write_all(&frame(newer)).unwrap();
        assert_eq!(reply(&mut stream), Reply::Holding(vec![HoldOutcome::Held]));
    });
}

#[test]
fn slow_client_is_disconnected_and_delays_no_other_client() {
    in_netns(|| {
        let node = Node::new();
        let keeper = node.keeper("a");
        let start = Instant::now();
        let mut silent = raw(&keeper);
        silent.write_all(&[0]).unwrap();
        let mut trickling = raw(&keeper);
        trickling.write_all(&100_u32.to_be_bytes()).unwrap();
        let mut writer = trickling.try_clone().unwrap();
        std::thread::scope(|scope| {
            // single bytes do not extend the limit
            let trickle = scope.spawn(move || {
                while writer.write_all(b" ").is_ok() {
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            keeper.hold(&ports(Tcp, 20000, 10));
            for stream in [&mut silent, &mut trickling] {
                assert!(matches!(reply(stream), Reply::Error(_)));
            }
            let took = start.elapsed();
            assert!((1..5).contains(&took.as_secs()), "cut off after {took:?}");
            trickle.join().unwrap();
        });
        assert_eq!(keeper.list().unwrap().len(), 10);
    });
}

#[test]
fn newest_connection_is_served_when_there_are_many() {
    in_netns(|| {
        let node = Node::new();
        let keeper = node.keeper("a");
        let mut open: Vec<UnixStream> = (0..40).map(|_| raw(&keeper)).collect();
        assert_eq!(
            open[0].read(&mut [0; 1]).unwrap(),
            0,
            "the oldest is closed"
        );
        let newest = open.last_mut().unwrap();
        newest
            .write_all(&frame(r#"{"v":1,"request":{"list":{}}}"#))
            .unwrap();
        assert_eq!(
            reply(newest),
            Reply::Held {
                ports: vec![],
                more: false
            }
        );
        drop(open);
        keeper.hold(&ports(Udp, 20000, 1));
    });
}

#[test]
fn client_reports_a_restarted_keeper() {
    in_netns(|| {
        let node = Node::new();
        let first = node.keeper("a");
        let held = ports(Tcp, 20000, 5);
        first.hold(&held);
        let mut client = first.client();
        block_on(async {
            let mut watch = RoleWatch::connect(&first.socket, soon()).await.unwrap();
            assert_eq!(watch.next().await.unwrap(), KeeperRole::Active);
            assert_eq!(client.list().await.unwrap().len(), 5);
            first.kill();
            assert!(matches!(
                watch.next().await,
                Err(KeeperClientError::Lost { .. })
            ));
        });
        let second = node.keeper("a");
        block_on(async {
            let restarted = client.hold(&held).await;
            assert!(
                matches!(restarted, Err(KeeperClientError::Restarted { .. })),
                "{restarted:?}"
            );
            assert!(client.list().await.unwrap().is_empty());
            assert_eq!(client.hold(&held).await.unwrap(), [HoldOutcome::Held; 5]);
        });
        drop(second);
        let gone = block_on(KeeperClient::connect(
            node.path("a.sock"),
            Duration::from_millis(50),
        ));
        let message = gone.unwrap_err().to_string();
        assert!(
            message.contains("a.sock within 50ms: does the keeper container"),
            "{message}"
        );
    });
}

#[test]
fn cancelled_request_does_not_mix_up_replies() {
    in_netns(|| {
        let node = Node::new();
        let keeper = node.keeper("a");
        keeper.hold(&ports(Tcp, 20000, 2000));
        let mut client = keeper.client();
        block_on(async {
            for microseconds in (0..2000).step_by(50) {
                let limit = Duration::from_micros(microseconds);
                let _ = tokio::time::timeout(limit, client.list()).await;
                let outcomes = client.hold(&ports(Tcp, 20000, 1)).await.unwrap();
                assert_eq!(outcomes, [HoldOutcome::Held]);
            }
        });
    });
}
