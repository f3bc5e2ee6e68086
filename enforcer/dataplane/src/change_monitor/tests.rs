use super::*;

const MS: Duration = Duration::from_millis(1);

fn is_due(monitor: &ChangeMonitor) -> bool {
    monitor.0.state.lock().due().is_some()
}

#[test]
fn commit_of_another_program_makes_a_read_due() {
    let monitor = ChangeMonitor::default();
    monitor.heard(7, 1);
    assert!(is_due(&monitor));
    monitor.record_read(Some(7), MS, false);
    assert!(!is_due(&monitor), "it was looked at");
    monitor.heard(6, 1);
    assert!(!is_due(&monitor), "so were all before it");
    monitor.heard(8, 1);
    assert!(is_due(&monitor));
}

#[test]
fn own_commits_make_no_read_due() {
    let monitor = ChangeMonitor::default();
    monitor.begin_change();
    monitor.heard(8, 1);
    assert!(!is_due(&monitor), "whose it is shows later");
    monitor.end_change(Some(7), Some(9), Some(2));
    assert!(!is_due(&monitor));
    monitor.heard(9, 1);
    assert!(!is_due(&monitor));
    monitor.heard(10, 1);
    assert!(is_due(&monitor));
}

#[test]
fn commit_of_another_program_between_ours_makes_a_read_due() {
    for (after, commits) in [(Some(9), Some(1)), (None, Some(1)), (Some(9), None)] {
        let monitor = ChangeMonitor::default();
        monitor.begin_change();
        monitor.heard(8, 1);
        monitor.end_change(Some(7), after, commits);
        assert!(is_due(&monitor), "{after:?} {commits:?}");
    }
}

#[test]
fn commits_from_our_own_socket_are_ours() {
    let monitor = ChangeMonitor::default();
    monitor.own_port(4711);
    monitor.heard(8, 4711);
    assert!(!is_due(&monitor));
    monitor.heard(9, 4712);
    assert!(is_due(&monitor));
}

#[test]
fn lost_announcements_make_a_read_due() {
    let monitor = ChangeMonitor::default();
    monitor.missed();
    assert!(is_due(&monitor));
    let crowded = ChangeMonitor::default();
    crowded.begin_change();
    (0..1000).for_each(|generation| crowded.heard(generation, 1));
    crowded.end_change(Some(0), Some(1000), Some(1000));
    assert!(is_due(&crowded));
}

#[tokio::test(start_paused = true)]
async fn hints_arrive_until_the_token_is_cancelled() {
    let monitor = ChangeMonitor::default();
    let (sender, mut hints) = watch::channel(0);
    let token = CancellationToken::new();
    let hinting = {
        let (monitor, token) = (monitor.clone(), token.clone());
        tokio::spawn(async move { monitor.hint(sender, token).await })
    };
    monitor.heard(8, 1);
    hints.changed().await.unwrap();
    monitor.heard(9, 1);
    hints.changed().await.unwrap();
    assert_eq!(*hints.borrow(), 2);
    token.cancel();
    hinting.await.unwrap();
}
