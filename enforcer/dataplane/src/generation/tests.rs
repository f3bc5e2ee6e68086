use super::*;

const MS: Duration = Duration::from_millis(1);

fn is_due(drift: &Drift) -> bool {
    drift.0.state.lock().due().is_some()
}

#[test]
fn commit_of_somebody_else_is_to_be_looked_at() {
    let drift = Drift::default();
    drift.heard(7, 1);
    assert!(is_due(&drift));
    drift.looked(Some(7), MS, false);
    assert!(!is_due(&drift), "it was looked at");
    drift.heard(6, 1);
    assert!(!is_due(&drift), "so were all before it");
    drift.heard(8, 1);
    assert!(is_due(&drift));
}

#[test]
fn own_commits_are_not_whenever_they_are_heard() {
    let drift = Drift::default();
    drift.begin_change();
    drift.heard(8, 1);
    assert!(!is_due(&drift), "whose it is shows later");
    drift.end_change(Some(7), Some(9), Some(2));
    assert!(!is_due(&drift));
    drift.heard(9, 1);
    assert!(!is_due(&drift));
    drift.heard(10, 1);
    assert!(is_due(&drift));
}

#[test]
fn commit_of_somebody_else_amid_ours_is_seen() {
    for (after, commits) in [(Some(9), Some(1)), (None, Some(1)), (Some(9), None)] {
        let drift = Drift::default();
        drift.begin_change();
        drift.heard(8, 1);
        drift.end_change(Some(7), after, commits);
        assert!(is_due(&drift), "{after:?} {commits:?}");
    }
}

#[test]
fn commits_from_our_own_socket_are_ours() {
    let drift = Drift::default();
    drift.own_port(4711);
    drift.heard(8, 4711);
    assert!(!is_due(&drift));
    drift.heard(9, 4712);
    assert!(is_due(&drift));
}

#[test]
fn lost_announcements_are_to_be_looked_at() {
    let drift = Drift::default();
    drift.missed();
    assert!(is_due(&drift));
    let crowded = Drift::default();
    crowded.begin_change();
    (0..1000).for_each(|generation| crowded.heard(generation, 1));
    crowded.end_change(Some(0), Some(1000), Some(1000));
    assert!(is_due(&crowded));
}

#[tokio::test(start_paused = true)]
async fn hints_come_and_end() {
    let drift = Drift::default();
    let (sender, mut hints) = watch::channel(0);
    let token = CancellationToken::new();
    let hinting = {
        let (drift, token) = (drift.clone(), token.clone());
        tokio::spawn(async move { drift.hint(sender, token).await })
    };
    drift.heard(8, 1);
    hints.changed().await.unwrap();
    drift.heard(9, 1);
    hints.changed().await.unwrap();
    assert_eq!(*hints.borrow(), 2);
    token.cancel();
    hinting.await.unwrap();
}
