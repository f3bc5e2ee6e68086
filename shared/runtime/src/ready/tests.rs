use super::Readiness;

#[test]
fn ready_only_when_every_part_is() {
    let readiness = Readiness::default();
    let (first, second) = (readiness.handle("first"), readiness.handle("second"));
    assert_eq!(readiness.pending(), ["first: starting", "second: starting"]);
    first.ready();
    assert_eq!(readiness.pending(), ["second: starting"]);
    second.ready();
    assert!(readiness.pending().is_empty() && second.is_ready());
}

#[test]
fn a_part_may_become_unready_and_dropping_a_handle_changes_nothing() {
    let readiness = Readiness::default();
    let part = readiness.handle("part");
    part.ready();
    part.wait_for("draining");
    assert_eq!(readiness.pending(), ["part: draining"]);
    part.ready();
    drop(part);
    assert!(readiness.pending().is_empty());
}
