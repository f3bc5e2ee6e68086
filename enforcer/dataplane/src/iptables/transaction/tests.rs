use super::*;

#[test]
fn empty_transaction_has_no_text() {
    assert_eq!(Transaction::default().text(), None);
}

#[test]
fn declares_chains_first_and_removes_chains_last() {
    let owned = |pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    };
    let transaction = Transaction {
        chains: BTreeMap::from([
            (
                "PORTMAPPING".to_owned(),
                vec!["-p tcp -g A".to_owned(), "-p udp -g B".to_owned()],
            ),
            ("PORTMAPPING-TCP".to_owned(), vec![]),
        ]),
        appended: owned(&[("PORTMAPPING-UDP-1-2", "-j DNAT")]),
        obsolete: vec!["PORTMAPPING-OLD".to_owned()],
        deleted: owned(&[("PREROUTING", "-j PORTMAPPING")]),
        inserted: owned(&[("PREROUTING", "-j PORTMAPPING")]),
    };
    let text = "*nat
:PORTMAPPING - [0:0]
:PORTMAPPING-TCP - [0:0]
:PORTMAPPING-OLD - [0:0]
-D PREROUTING -j PORTMAPPING
-I PREROUTING 1 -j PORTMAPPING
-A PORTMAPPING -p tcp -g A
-A PORTMAPPING -p udp -g B
-A PORTMAPPING-UDP-1-2 -j DNAT
-X PORTMAPPING-OLD
COMMIT
";
    assert_eq!(transaction.text().as_deref(), Some(text));
}
