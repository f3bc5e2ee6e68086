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

fn up(id: &str) -> SandboxNews {
    SandboxNews::Up(sandbox(id))
}

fn down(id: &str) -> SandboxNews {
    SandboxNews::Down(id.parse().unwrap())
}

fn broken() -> Reading {
    Reading::Unusable("cut off".to_owned())
}

fn file(name: &str) -> &OsStr {
    OsStr::new(name)
}

#[test]
fn a_removed_file_takes_its_sandbox_along() {
    let mut known = Known::default();
    assert_eq!(
        known.read(file("f"), Reading::Sandbox(sandbox("a"))),
        [up("a")]
    );
    assert_eq!(known.removed(file("f")), Some(down("a")));
    assert_eq!(known.removed(file("f")), None);
}

#[test]
fn files_of_no_interest_come_and_go_unheard() {
    let mut known = Known::default();
    for reading in [Reading::Other, broken(), Reading::Gone] {
        assert_eq!(known.read(file("f"), reading), []);
        assert_eq!(known.removed(file("f")), None);
    }
    assert_eq!(known.removed(file("never seen")), None);
}

#[test]
fn a_half_written_file_is_mended_by_the_next_reading() {
    let mut known = Known::default();
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
    let mut known = Known::default();
    let _ = known.read(file("f"), Reading::Sandbox(sandbox("a")));
    assert_eq!(
        known.read(file("f"), Reading::Sandbox(sandbox("b"))),
        [down("a"), up("b")]
    );
    assert_eq!(known.read(file("f"), Reading::Other), [down("b")]);
    assert_eq!(known.removed(file("f")), None);
}

#[test]
fn of_two_files_for_one_sandbox_the_first_removal_counts() {
    let mut known = Known::default();
    let _ = known.read(file("delegate"), Reading::Sandbox(sandbox("a")));
    let _ = known.read(file("multus"), Reading::Sandbox(sandbox("a")));
    assert_eq!(known.removed(file("delegate")), Some(down("a")));
    assert_eq!(known.removed(file("multus")), Some(down("a")));
}

#[test]
fn a_list_is_all_there_is() {
    let mut known = Known::default();
    let _ = known.read(file("old"), Reading::Sandbox(sandbox("old")));
    let _ = known.read(file("kept"), Reading::Sandbox(sandbox("kept")));
    let listed = known.listed(vec![
        (file("new").to_owned(), Reading::Sandbox(sandbox("new"))),
        (file("kept").to_owned(), broken()),
        (file("lo").to_owned(), Reading::Other),
        (file("broken").to_owned(), broken()),
        (file("fleeting").to_owned(), Reading::Gone),
    ]);
    let SandboxNews::Listed(mut sandboxes) = listed else {
        panic!("{listed:?}")
    };
    sandboxes.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(sandboxes, [sandbox("kept"), sandbox("new")]);
    assert_eq!(known.removed(file("old")), None, "it went with the list");
    assert_eq!(known.removed(file("kept")), Some(down("kept")));
    assert_eq!(known.removed(file("new")), Some(down("new")));
}
