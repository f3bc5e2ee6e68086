//! When a retired enforcer asks for the takeover. Time is paused: waits pass at once.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use portmapping_keeper::wire::{Reply, Request};
use portmapping_runtime::Readiness;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::keeper_client::tests::keeper;

/// More than several pauses between two requests.
const WHILE: Duration = Duration::from_secs(20);

/// A retired keeper that becomes active when it is asked to. Counts the requests.
struct Retired {
    _dir: TempDir,
    path: PathBuf,
    asked: Arc<AtomicUsize>,
    sender: Arc<watch::Sender<KeeperRole>>,
    role: watch::Receiver<KeeperRole>,
}

impl Retired {
    fn start() -> Self {
        let (sender, role) = watch::channel(KeeperRole::Retired);
        let (sender, asked) = (Arc::new(sender), Arc::new(AtomicUsize::new(0)));
        let (becomes, count) = (Arc::clone(&sender), Arc::clone(&asked));
        let (dir, path, _) = keeper(&[1], move |request| {
            assert_eq!(request, Request::TakeOver);
            count.fetch_add(1, Ordering::Relaxed);
            becomes.send_replace(KeeperRole::Active);
            Some(Reply::Role(KeeperRole::Active))
        });
        Self {
            _dir: dir,
            path,
            asked,
            sender,
            role,
        }
    }

    async fn client(&self) -> KeeperClient {
        KeeperClient::connect(&self.path, WHILE).await.unwrap()
    }

    fn requests(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn is_not_asked_before_the_first_list_and_the_permission() {
    for list_first in [true, false] {
        let retired = Retired::start();
        let (mut client, mut role) = (retired.client().await, retired.role.clone());
        let (list, mut pods) = mpsc::channel(1);
        let permission = Readiness::default().handle("permission");
        let mut turn = pin!(await_turn(
            &mut client,
            &mut role,
            &mut pods,
            Some(&permission)
        ));
        assert!(timeout(WHILE, &mut turn).await.is_err());
        if list_first {
            list.try_send(PodUpdate::Relisted(BTreeSet::new())).unwrap();
        } else {
            permission.ready();
        }
        assert!(timeout(WHILE, &mut turn).await.is_err());
        assert_eq!(retired.requests(), 0, "list first: {list_first}");

        if list_first {
            permission.ready();
        } else {
            list.try_send(PodUpdate::Relisted(BTreeSet::new())).unwrap();
        }
        let seen = timeout(WHILE, turn).await.unwrap();
        assert_eq!(retired.requests(), 1);
        assert!(matches!(&seen[..], [PodUpdate::Relisted(_)]));
    }
}

#[tokio::test(start_paused = true)]
async fn the_turn_comes_without_a_list_when_the_other_enforcer_ends() {
    let retired = Retired::start();
    let (mut client, mut role) = (retired.client().await, retired.role.clone());
    let (_list, mut pods) = mpsc::channel(1);
    let permission = Readiness::default().handle("permission");
    retired.sender.send_replace(KeeperRole::Active);
    let turn = await_turn(&mut client, &mut role, &mut pods, Some(&permission));
    let seen = timeout(WHILE, turn).await.unwrap();
    assert!(seen.is_empty());
    assert_eq!(retired.requests(), 0);
}
