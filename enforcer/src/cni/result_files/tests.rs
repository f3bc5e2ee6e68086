use std::time::Duration;

use super::*;

fn sandbox(id: &str) -> Sandbox {
    Sandbox {
        uid: format!("uid-{id}").parse().unwrap(),
        id: id.parse().unwrap(),
        ips: vec!["10.1.0.2".parse().unwrap()],
        written: Duration::from_secs(1),
    }
}

fn up(id: &str) -> SandboxUpdate {
    SandboxUpdate::Up(sandbox(id))
}

fn down(id: &str) -> SandboxUpdate {
    SandboxUpdate::Down(id.parse().unwrap())
}

fn broken() -> Reading {
    Reading::Unusable("cut off".to_owned())
}

fn file(name: &str) -> &OsStr {
    OsStr::new(name)
}

#[test]
fn a_removed_file_removes_its_sandbox() {
    let mut known = ResultFiles::default();
    assert_eq!(
        known.read(file("f"), Reading::Sandbox(sandbox("a"))),
        [up("a")]
    );
    assert_eq!(known.removed(file("f")), Some(down("a")));
    assert_eq!(known.removed(file("f")), None);
}

#[test]
fn files_of_other_interfaces_cause_no_update() {
    let mut known = ResultFiles::default();
    for reading in [Reading::Other, broken(), Reading::Gone] {
        assert_eq!(known.read(file("f"), reading), []);
        assert_eq!(known.removed(file("f")), None);
    }
    assert_eq!(known.removed(file("never seen")), None);
}

#[test]
fn an_incomplete_file_is_used_once_it_is_complete() {
    let mut known = ResultFiles::default();
    assert_eq!(known.read(file("f"), broken()), []);
    assert_eq!(
        known.read(file("f"), Reading::Sandbox(sandbox("a"))),
        [up("a")]
    );
    assert_eq!(
        known.read(file("f"), broken()),
        [],
        "what it said before still holds"
    );
    assert_eq!(known.removed(file("f")), Some(down("a")));
}

#[test]
fn a_file_rewritten_for_another_sandbox_ends_the_first() {
    let mut known = ResultFiles::default();
    let _ = known.read(file("f"), Reading::Sandbox(sandbox("a")));
    assert_eq!(
        known.read(file("f"), Reading::Sandbox(sandbox("b"))),
        [down("a"), up("b")]
    );
    assert_eq!(known.read(file("f"), Reading::Other), [down("b")]);
    assert_eq!(known.removed(file("f")), None);
}

#[test]
fn the_first_removal_counts_when_two_files_describe_one_sandbox() {
    let mut known = ResultFiles::default();
    let _ = known.read(file("delegate"), Reading::Sandbox(sandbox("a")));
    let _ = known.read(file("multus"), Reading::Sandbox(sandbox("a")));
    assert_eq!(known.removed(file("delegate")), Some(down("a")));
    assert_eq!(known.removed(file("multus")), Some(down("a")));
}

#[test]
fn a_list_replaces_everything_known_before() {
    let mut known = ResultFiles::default();
    let _ = known.read(file("old"), Reading::Sandbox(sandbox("old")));
    let _ = known.read(file("kept"), Reading::Sandbox(sandbox("kept")));
    let listed = known.listed(vec![
        (file("new").to_owned(), Reading::Sandbox(sandbox("new"))),
        (file("kept").to_owned(), broken()),
        (file("lo").to_owned(), Reading::Other),
        (file("broken").to_owned(), broken()),
        (file("fleeting").to_owned(), Reading::Gone),
    ]);
    let SandboxUpdate::Listed(mut sandboxes) = listed else {
        panic!("{listed:?}")
    };
    sandboxes.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(sandboxes, [sandbox("kept"), sandbox("new")]);
    assert_eq!(known.removed(file("old")), None, "it went with the list");
    assert_eq!(known.removed(file("kept")), Some(down("kept")));
    assert_eq!(known.removed(file("new")), Some(down("new")));
}

fn written_at(id: &str, second: u64) -> Reading {
    Reading::Sandbox(Sandbox {
        written: Duration::from_secs(second),
        ..sandbox(id)
    })
}

fn times(update: &SandboxUpdate) -> Vec<(String, Duration)> {
    let all = match update {
        SandboxUpdate::Up(sandbox) => std::slice::from_ref(sandbox),
        SandboxUpdate::Listed(all) => all,
        SandboxUpdate::Down(_) => &[],
    };
    let mut times: Vec<_> = all.iter().map(|s| (s.id.to_string(), s.written)).collect();
    times.sort_by_key(|(_, written)| *written);
    times
}

#[test]
fn a_file_written_after_the_clock_was_set_back_is_later() {
    let mut known = ResultFiles::default();
    let before = times(&known.read(file("1"), written_at("a", 1000))[0]);
    let after = times(&known.read(file("2"), written_at("b", 10))[0]);
    let then = times(&known.read(file("3"), written_at("c", 20))[0]);
    assert!(before[0].1 < after[0].1, "{before:?} {after:?}");
    assert!(after[0].1 < then[0].1, "{after:?} {then:?}");
    // the clock is correct again
    let right = times(&known.read(file("4"), written_at("d", 2000))[0]);
    assert_eq!(right[0].1, Duration::from_secs(2000));
}

#[test]
fn a_file_read_again_unchanged_keeps_its_time_and_a_changed_one_is_the_latest() {
    let mut known = ResultFiles::default();
    let _ = known.read(file("1"), written_at("a", 1000));
    let first = known.read(file("2"), written_at("b", 10));
    let _ = known.read(file("3"), written_at("c", 20));
    assert_eq!(known.read(file("2"), written_at("b", 10)), first);
    let other = Sandbox {
        ips: vec!["10.1.0.3".parse().unwrap()],
        written: Duration::from_secs(10),
        ..sandbox("b")
    };
    let changed = known.read(file("2"), Reading::Sandbox(other));
    assert!(times(&first[0])[0].1 < times(&changed[0])[0].1);
    let listed = known.listed(vec![
        (file("3").to_owned(), written_at("c", 20)),
        (file("1").to_owned(), written_at("a", 1000)),
    ]);
    let order: Vec<_> = times(&listed).into_iter().map(|(id, _)| id).collect();
    assert_eq!(order, ["a", "c"], "as they were written");
}

#[test]
fn new_files_of_a_list_are_later_than_known_ones_and_ordered_by_time() {
    let mut known = ResultFiles::default();
    let found = known.listed(vec![
        (file("2").to_owned(), written_at("b", 30)),
        (file("1").to_owned(), written_at("a", 1000)),
    ]);
    let seconds = |update| {
        let times = times(update).into_iter();
        times
            .map(|(_, written)| written.as_secs())
            .collect::<Vec<_>>()
    };
    assert_eq!(seconds(&found), [30, 1000]);
    // the clock was set back, and the kernel's queue overflowed
    let listed = known.listed(vec![
        (file("4").to_owned(), written_at("d", 12)),
        (file("3").to_owned(), written_at("c", 11)),
        (file("1").to_owned(), written_at("a", 1000)),
        (file("2").to_owned(), written_at("b", 30)),
    ]);
    let order: Vec<_> = times(&listed).into_iter().map(|(id, _)| id).collect();
    assert_eq!(order, ["b", "a", "c", "d"]);
}
