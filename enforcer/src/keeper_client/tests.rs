//! The client against keepers that misbehave. Time is paused, so that time limits pass at once.

use std::os::unix::fs::PermissionsExt;

use portmapping_shared::{HostPort, Protocol};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use portmapping_keeper::wire::{self, Envelope, Errno};

fn ports(count: u16) -> Vec<PortKey> {
    (20000..20000 + count)
        .map(|port| (Protocol::Tcp, HostPort::new(port).unwrap()))
        .collect()
}

async fn send(stream: &mut UnixStream, reply: Reply) {
    stream
        .write_all(&wire::encode(&reply).unwrap())
        .await
        .unwrap();
}

async fn request(stream: &mut UnixStream) -> Option<Request> {
    let length = stream.read_u32().await.ok()?;
    let mut json = vec![0; length as usize];
    stream.read_exact(&mut json).await.ok()?;
    Some(wire::decode::<Envelope>(&json).unwrap().request)
}

/// Greets each connection with the next instance number, then answers with `play`; None closes the
/// connection.
pub(crate) fn keeper(
    instances: &[u64],
    mut play: impl FnMut(Request) -> Option<Reply> + Send + 'static,
) -> (TempDir, PathBuf, JoinHandle<()>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keeper.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let instances = instances.to_vec();
    let task = tokio::spawn(async move {
        for instance in instances {
            let (mut stream, _) = listener.accept().await.unwrap();
            send(
                &mut stream,
                Reply::Hello {
                    v: VERSION,
                    instance,
                },
            )
            .await;
            while let Some(reply) = request(&mut stream).await.and_then(&mut play) {
                send(&mut stream, reply).await;
            }
        }
    });
    (dir, path, task)
}

const NOW: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn splits_large_requests_and_joins_the_outcomes() {
    let mut sizes = vec![];
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (_dir, path, _) = keeper(&[1], move |request| {
        let Request::Hold(ports) = request else {
            return None;
        };
        tell.send(ports.len()).unwrap();
        let outcome = |port: &PortKey| HoldOutcome::Refused(Errno(i32::from(port.1.get())));
        Some(Reply::Holding(ports.iter().map(outcome).collect()))
    });
    let mut client = KeeperClient::connect(&path, NOW).await.unwrap();
    let outcomes = client.hold(&ports(2500)).await.unwrap();
    while let Ok(size) = told.try_recv() {
        sizes.push(size);
    }
    assert_eq!(sizes, [1024, 1024, 452]);
    let expected = (20000..22500)
        .map(|n| HoldOutcome::Refused(Errno(n)))
        .collect::<Vec<_>>();
    assert_eq!(outcomes, expected);
    assert!(client.hold(&[]).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn reconnects_once_to_the_same_keeper() {
    let mut calls = 0;
    let (_dir, path, _) = keeper(&[7, 7], move |_| {
        calls += 1;
        (calls > 1).then_some(Reply::Released(3))
    });
    let mut client = KeeperClient::connect(&path, NOW).await.unwrap();
    assert_eq!(client.release(&ports(3)).await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn reports_another_instance_once() {
    let mut calls = 0;
    let (_dir, path, _) = keeper(&[7, 8], move |_| {
        calls += 1;
        (calls > 1).then_some(Reply::Released(0))
    });
    let mut client = KeeperClient::connect(&path, NOW).await.unwrap();
    let restarted = client.release(&ports(3)).await;
    assert!(
        matches!(restarted, Err(KeeperClientError::Restarted { .. })),
        "{restarted:?}"
    );
    assert_eq!(client.release(&ports(3)).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_silent_or_missing_keeper_costs_a_bounded_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keeper.sock");
    let start = Instant::now();
    let absent = KeeperClient::connect(&path, NOW).await.unwrap_err();
    assert!(start.elapsed() <= NOW, "{:?}", start.elapsed());
    assert!(
        matches!(absent, KeeperClientError::Connect { .. }),
        "{absent:?}"
    );

    // accepts, but does not even greet
    let listener = UnixListener::bind(&path).unwrap();
    let start = Instant::now();
    assert!(KeeperClient::connect(&path, NOW).await.is_err());
    assert!(start.elapsed() <= NOW + Duration::from_millis(1));
    drop(listener);

    let (_dir, path, task) = keeper(&[1], |_| Some(Reply::Released(1)));
    let mut client = KeeperClient::connect(&path, NOW).await.unwrap();
    client.release(&ports(1)).await.unwrap();
    task.abort();
    let _ = task.await;
    let start = Instant::now();
    let lost = client.release(&ports(1)).await;
    assert!(
        matches!(lost, Err(KeeperClientError::Connect { .. })),
        "{lost:?}"
    );
    assert!(start.elapsed() <= RECONNECT_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn unanswered_request_times_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keeper.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let silent = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        send(
            &mut stream,
            Reply::Hello {
                v: VERSION,
                instance: 1,
            },
        )
        .await;
        std::future::pending::<()>().await;
    });
    let mut client = KeeperClient::connect(&path, NOW).await.unwrap();
    let error = client.hold(&ports(1)).await.unwrap_err();
    assert!(
        matches!(error, KeeperClientError::Timeout { what: "hold", .. }),
        "{error:?}"
    );
    silent.abort();
}

#[tokio::test(start_paused = true)]
async fn replies_that_do_not_fit_the_request_are_errors() {
    type Play = fn(Request) -> Option<Reply>;
    let plays: [Play; 4] = [
        |_| Some(Reply::Holding(vec![])),
        |_| Some(Reply::Hello { v: 1, instance: 1 }),
        |_| {
            Some(Reply::Held {
                ports: vec![],
                more: true,
            })
        },
        |_| {
            Some(Reply::Held {
                ports: ports(1),
                more: true,
            })
        },
    ];
    for play in plays {
        let (_dir, path, _) = keeper(&[1], play);
        let mut client = KeeperClient::connect(&path, NOW).await.unwrap();
        let held = client.hold(&ports(1)).await;
        assert!(
            matches!(held, Err(KeeperClientError::UnexpectedReply { .. })),
            "{held:?}"
        );
    }
    // a list that never ends
    let (_dir, path, _) = keeper(&[1], |_| {
        Some(Reply::Held {
            ports: ports(1),
            more: true,
        })
    });
    let mut client = KeeperClient::connect(&path, NOW).await.unwrap();
    assert!(matches!(
        client.list().await,
        Err(KeeperClientError::UnexpectedReply { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn retired_and_rejected_are_different_errors() {
    for (reply, retired) in [(Reply::Retired, true), (Reply::Error("no".into()), false)] {
        let (_dir, path, _) = keeper(&[1], move |_| Some(reply.clone()));
        let mut client = KeeperClient::connect(&path, NOW).await.unwrap();
        let error = client.hold(&ports(1)).await.unwrap_err();
        assert_eq!(matches!(error, KeeperClientError::Retired { .. }), retired);
        assert_eq!(
            matches!(error, KeeperClientError::Rejected { .. }),
            !retired
        );
        assert!(error.to_string().contains("keeper.sock"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_keeper_is_an_error_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keeper.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        send(&mut stream, Reply::Hello { v: 0, instance: 1 }).await;
    });
    let error = KeeperClient::connect(&path, NOW).await.unwrap_err();
    assert!(
        matches!(error, KeeperClientError::Version { theirs: 0, .. }),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn long_path_is_an_error_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let path = dir.path().join("x".repeat(200));
    let error = KeeperClient::connect(&path, NOW).await.unwrap_err();
    assert!(
        matches!(error, KeeperClientError::Connect { .. }),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn follower_waits_longer_after_each_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keeper.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (role, _role) = tokio::sync::watch::channel(KeeperRole::Active);
    let (connected, _connected) = tokio::sync::watch::channel(0);
    let follower = tokio::spawn(follow_role(path, role, connected, CancellationToken::new()));
    let start = Instant::now();
    // an old keeper: every try fails at once
    for _ in 0..10 {
        let (mut stream, _) = listener.accept().await.unwrap();
        send(&mut stream, Reply::Hello { v: 0, instance: 1 }).await;
    }
    let waits: u64 = [20, 40, 80, 160, 320, 640, 1280, 2560, 5000].iter().sum();
    assert!(start.elapsed() >= Duration::from_millis(waits));
    follower.abort();
}
