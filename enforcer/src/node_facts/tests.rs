//! Facts from files as kernels write them, and from invalid files.

use std::fs;

use portmapping_shared::HostPort;
use tempfile::TempDir;

use super::*;

fn node(files: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn set(ports: impl IntoIterator<Item = u16>) -> PortSet {
    ports.into_iter().filter_map(HostPort::new).collect()
}

#[test]
fn reads_an_ordinary_node() {
    let root = node(&[
        (RESERVED, "8080,20000-20002\n"),
        (EPHEMERAL, "32768\t60999\n"),
        (UNPRIVILEGED, "1024\n"),
        (
            INTERFACES_6,
            "00000000000000000000000000000001 01 80 10 80       lo\n",
        ),
        (DISABLE_6, "0\n"),
    ]);
    let facts = NodeFacts::read(root.path()).unwrap();
    assert_eq!(facts.reserved, set([8080, 20000, 20001, 20002]));
    assert_eq!(facts.ephemeral, "32768-60999".parse().ok());
    assert_eq!(facts.unprivileged, Some(1024));
    assert!(facts.ipv6);
    assert!(facts.notes.is_empty(), "{:?}", facts.notes);
}

#[test]
fn missing_files_leave_a_note() {
    let facts = NodeFacts::read(node(&[]).path()).unwrap();
    assert_eq!(
        facts,
        NodeFacts {
            notes: facts.notes.clone(),
            ..NodeFacts::default()
        }
    );
    assert_eq!(facts.notes.len(), 5);
    assert!(
        facts
            .notes
            .iter()
            .any(|note| note.contains("ip_local_port_range is missing"))
    );
}

#[test]
fn ipv6_needs_interfaces_and_must_not_be_disabled() {
    for (files, usable) in [
        (&[(INTERFACES_6, ""), (DISABLE_6, "0")][..], true),
        (&[(INTERFACES_6, ""), (DISABLE_6, "1")], false),
        (&[(DISABLE_6, "0")], false),
        (&[(INTERFACES_6, "")], false),
    ] {
        assert_eq!(
            NodeFacts::read(node(files).path()).unwrap().ipv6,
            usable,
            "{files:?}"
        );
    }
}

#[test]
fn reads_reserved_ports_in_every_form() {
    for (text, expected) in [
        ("", set([])),
        ("\n", set([])),
        ("0", set([])),
        ("0-2,5", set([1, 2, 5])),
        (" 1 , 3-4 \n", set([1, 3, 4])),
        ("65535", set([65535])),
    ] {
        let root = node(&[(RESERVED, text)]);
        assert_eq!(
            NodeFacts::read(root.path()).unwrap().reserved,
            expected,
            "{text:?}"
        );
    }
}

#[test]
fn unexpected_text_is_an_error_that_quotes_it() {
    for (file, text) in [
        (RESERVED, "a"),
        (RESERVED, "1-"),
        (RESERVED, "70000"),
        (RESERVED, "5-1"),
        (EPHEMERAL, "32768"),
        (EPHEMERAL, "60999 32768"),
        (UNPRIVILEGED, "-1"),
        (DISABLE_6, ""),
    ] {
        let root = node(&[(INTERFACES_6, ""), (file, text)]);
        let error = NodeFacts::read(root.path()).unwrap_err().to_string();
        assert!(
            error.contains(file) && error.contains(&format!("{text:?}")),
            "{error}"
        );
    }
    let root = node(&[(INTERFACES_6, "")]);
    fs::create_dir_all(root.path().join(RESERVED)).unwrap();
    assert!(matches!(
        NodeFacts::read(root.path()),
        Err(NodeFactsError::Read { .. })
    ));
}

#[test]
fn a_range_with_ports_that_the_keeper_may_not_bind_is_refused() {
    let check = |start, range: &str, excluded| {
        let facts = NodeFacts {
            unprivileged: start,
            ..NodeFacts::default()
        };
        facts.check_privileged(range.parse().unwrap(), &excluded)
    };
    let error = check(Some(1024), "1000-2000", set([])).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("--range 1000-2000 has port 1000") && text.contains("1024"),
        "{text}"
    );
    assert!(check(Some(1024), "1023", set([])).is_err());
    check(Some(1024), "1024-2000", set([])).unwrap();
    check(Some(1024), "1000-2000", set(1000..1024)).unwrap();
    check(Some(80), "80-90", set([])).unwrap();
    check(None, "80-90", set([])).unwrap();
}

#[test]
fn reads_this_node() {
    let facts = NodeFacts::read(Path::new("/")).unwrap();
    assert!(facts.ephemeral.is_some(), "{facts:?}");
}
