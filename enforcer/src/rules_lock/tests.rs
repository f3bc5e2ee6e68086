//! Two enforcers of one node, in one process, and a real program that outlives its enforcer.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;

use super::*;

/// A program that changes the rules once its input is closed.
const PROGRAM: &str = r#"cat > /dev/null; echo changed > "$0""#;

#[test]
fn a_new_enforcer_reads_the_rules_after_a_program_of_an_ended_one_has_changed_them() {
    let dir = tempfile::tempdir().unwrap();
    let rules = dir.path().join("rules");
    let earlier = RulesLock::take(dir.path());
    let change = earlier.begin().unwrap();
    let mut program = Command::new("sh")
        .args(["-c", PROGRAM])
        .arg(&rules)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // the enforcer ends, its program does not
    drop((change, earlier));
    let now = Instant::now();
    let free = lock_file(&dir.path().join("rules.lock"), now).unwrap();
    assert!(free.is_none(), "the program has the lock");
    thread::scope(|scope| {
        let next = scope.spawn(|| {
            let next = RulesLock::take(dir.path());
            let found = fs::read_to_string(&rules);
            (next, found)
        });
        drop(program.stdin.take());
        let (next, found) = next.join().unwrap();
        assert_eq!(found.unwrap(), "changed\n", "read before the change");
        assert!(next.begin().is_ok());
    });
    program.wait().unwrap();
}

#[test]
fn an_enforcer_changes_no_rules_after_another_has_taken_the_node_over() {
    let dir = tempfile::tempdir().unwrap();
    let earlier = RulesLock::take(dir.path());
    drop(earlier.begin().unwrap());
    let next = RulesLock::take(dir.path());
    assert!(matches!(earlier.begin(), Err(TakenOver)));
    drop(next.begin().unwrap());
    // the upgrade is undone
    let again = RulesLock::take(dir.path());
    assert!(matches!(next.begin(), Err(TakenOver)));
    assert!(again.begin().is_ok());
}

#[test]
fn a_program_that_hangs_keeps_no_enforcer_from_the_rules() {
    let dir = tempfile::tempdir().unwrap();
    let earlier = RulesLock::take(dir.path());
    let change = earlier.begin().unwrap();
    let mut hangs = Command::new("sleep").arg("60").spawn().unwrap();
    drop((change, earlier));
    let short = Duration::from_millis(50);
    let first = RulesLock::take_within(dir.path(), short);
    drop(first.begin().unwrap());
    let second = RulesLock::take_within(dir.path(), short);
    assert!(
        matches!(first.begin(), Err(TakenOver)),
        "two change the rules"
    );
    drop(second.begin().unwrap());
    hangs.kill().unwrap();
    hangs.wait().unwrap();
}

#[test]
fn pods_are_mapped_where_the_file_was_removed_or_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let lock = RulesLock::take(dir.path());
    fs::remove_file(dir.path().join("rules.lock")).unwrap();
    drop(lock.begin().unwrap());
    assert!(lock.begin().is_ok(), "its name is back");
    fs::remove_dir_all(dir.path()).unwrap();
    assert!(lock.begin().is_ok());
    assert!(RulesLock::take(dir.path()).begin().is_ok());
}

#[test]
fn an_enforcer_takes_the_right_from_a_file_that_is_longer_than_a_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("rules.lock"), "x".repeat(40)).unwrap();
    let lock = RulesLock::take(dir.path());
    assert!(lock.begin().is_ok());
}
