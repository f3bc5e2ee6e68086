//! More changes than anybody can follow.

use std::collections::BTreeSet;
use std::fs;

use portmapping_enforcer_core::SandboxUpdate;

use crate::lab::{Lab, good};

/// The kernel keeps 16,384 events, and the follower and its queue some hundreds more.
const FILES: usize = 20_000;

#[tokio::test]
async fn after_an_overflow_everything_is_listed() {
    let mut lab = Lab::new();
    assert!(lab.listed().await.is_empty());
    let results = lab.results();
    // nobody takes news meanwhile
    let writing = tokio::task::spawn_blocking(move || {
        for n in 0..FILES {
            let id = format!("s{n}");
            fs::write(results.join(format!("pods-{id}-eth0")), good(&id)).unwrap();
        }
    });
    writing.await.unwrap();
    let mut known = BTreeSet::new();
    let mut lists = 0;
    while known.len() < FILES {
        match lab.next().await {
            SandboxUpdate::Up(sandbox) => {
                known.insert(sandbox.id);
            }
            SandboxUpdate::Down(id) => panic!("{id} is there"),
            SandboxUpdate::Listed(sandboxes) => {
                lists += 1;
                known = sandboxes.into_iter().map(|sandbox| sandbox.id).collect();
            }
        }
    }
    assert!(
        lists > 0,
        "{FILES} changes fit into the kernel's queue: no test"
    );
    // and the next change is seen as ever
    lab.remove("pods-s7-eth0");
    loop {
        match lab.next().await {
            SandboxUpdate::Down(id) => break assert_eq!(id.as_str(), "s7"),
            SandboxUpdate::Up(_) | SandboxUpdate::Listed(_) => {}
        }
    }
    lab.end().await;
}

#[tokio::test]
async fn it_ends_when_told_to_even_while_nobody_takes_news() {
    let lab = Lab::new();
    for n in 0..1000 {
        lab.write(&format!("f{n}"), good(&format!("s{n}")));
    }
    lab.end().await;
}
