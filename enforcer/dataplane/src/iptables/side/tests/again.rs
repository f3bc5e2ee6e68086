//! A table that is read again is compared as text, and parsed where that differs.

use super::*;

#[test]
fn what_changes_by_itself_is_no_difference_and_anything_else_is() {
    let mut side = side(range("20000-29999"));
    let mut table = Table::new();
    let mappings =
        BTreeSet::from([20000, 20001].map(|port| map(Protocol::Tcp, port, "10.244.1.7", 9040)));
    table.apply(&side, &mappings);
    let text = table.text();
    let (first, _) = side.take(&text);
    assert_eq!((&first.mappings, first.intact), (&mappings, true));
    let read = side.known.as_ref().unwrap().text_read;
    assert!(read.is_some());

    let counted = text.replace("[0:0]", "[12:3456]");
    let timed = format!("# Generated on Sat Nov 21\n{counted}# Completed\n");
    let (again, altered) = side.take(&timed);
    assert_eq!((again, altered), (first.clone(), false));
    assert_eq!(side.known.as_ref().unwrap().text_read, read);

    let edited = text.replace("--dport 20001 ", "--dport 20002 ");
    assert_ne!(edited, text);
    let (seen, altered) = side.take(&edited);
    assert!(altered && !seen.intact, "{seen:?}");
    let (whole, altered) = side.take(&text);
    assert!(altered, "it is another text than the last one");
    assert_eq!(whole.mappings, mappings);
}
