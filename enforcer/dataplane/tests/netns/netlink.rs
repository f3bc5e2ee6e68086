//! Tests the netlink socket with the real kernel: its result says what was done, also after errors.

use portmapping_dataplane::netlink::{
    Batch, Encoder, Header, NetlinkError, Options, Socket, flags,
};
use rustix::io::Errno;

use crate::lab::skip;
use crate::netns::Netns;

const NEWTABLE: u16 = 0x0a00;
const DELTABLE: u16 = 0x0a02;
const NEWSET: u16 = 0x0a09;
const NEWSETELEM: u16 = 0x0a0c;
const GETSETELEM: u16 = 0x0a0d;
const NEWGEN: u16 = 0x0a0f;
const GETGEN: u16 = 0x0a10;

fn inet(kind: u16, flags: u16) -> Header {
    Header {
        kind,
        flags: flags::REQUEST | flags,
        family: 1,
        resource: 0,
    }
}

fn open(node: &Netns, options: Options) -> Socket {
    node.run(|| Socket::open(options)).expect("open")
}

fn generation(socket: &mut Socket) -> u32 {
    let mut generation = None;
    let asked = socket.request(
        inet(GETGEN, 0),
        |_| {},
        |answer| {
            assert_eq!(answer.kind, NEWGEN);
            generation = answer.attributes().find(1).and_then(|id| id.be32());
        },
    );
    asked.expect("generation");
    generation.expect("an answer")
}

/// Adds a table `t` with a set `s` of ports.
fn table(batch: &mut Batch) {
    batch.message(inet(NEWTABLE, flags::CREATE), |encoder| {
        encoder.text(1, "t");
    });
    batch.message(inet(NEWSET, flags::CREATE), |encoder| {
        encoder.text(1, "t");
        encoder.text(2, "s");
        encoder.be32(3, 0);
        encoder.be32(4, 13);
        encoder.be32(5, 2);
        encoder.be32(10, 1);
    });
}

fn ports(batch: &mut Batch, ports: impl IntoIterator<Item = u16>) {
    let head = |encoder: &mut Encoder| {
        encoder.text(1, "t");
        encoder.text(2, "s");
    };
    batch.list(
        inet(NEWSETELEM, flags::CREATE | flags::EXCL),
        head,
        3,
        ports,
        |encoder, port| {
            encoder.nest(1, |encoder| {
                encoder.nest(1, |encoder| encoder.bytes(1, &port.to_be_bytes()));
            });
        },
    );
}

fn elements(socket: &mut Socket) -> Result<usize, NetlinkError> {
    let mut count = 0;
    socket.dump(
        inet(GETSETELEM, 0),
        |encoder| {
            encoder.text(1, "t");
            encoder.text(2, "s");
        },
        |message| {
            let list = message.attributes().find(3);
            count += list.map_or(0, |list| list.attributes().count());
        },
    )?;
    Ok(count)
}

#[test]
fn batch_is_carried_out_and_read_back() {
    let node = Netns::new();
    let mut socket = open(&node, Options::default());
    let before = generation(&mut socket);
    let mut batch = Batch::new(Some(before));
    table(&mut batch);
    ports(&mut batch, 1..=20_000);
    socket.commit(&mut batch).unwrap();
    assert_eq!(elements(&mut socket).unwrap(), 20_000);
    assert_ne!(generation(&mut socket), before);
}

#[test]
fn refusals_name_their_element_and_undo_all() {
    let node = Netns::new();
    let mut socket = open(&node, Options::default());
    let mut batch = Batch::new(None);
    table(&mut batch);
    ports(&mut batch, [700, 1500]);
    socket.commit(&mut batch).unwrap();
    // two invalid messages in the middle, and a valid one at the end, which is acknowledged
    let mut batch = Batch::new(None);
    ports(&mut batch, 600..800);
    ports(&mut batch, 1400..1600);
    ports(&mut batch, [3000]);
    let error = socket.commit(&mut batch).unwrap_err();
    assert!(error.is_refusal(Errno::EXIST), "{error}");
    assert_eq!(elements(&mut socket).unwrap(), 2, "all is undone");
    if !names_elements(&node) {
        skip("the kernel does not say which element it refuses", (5, 10));
        return;
    }
    let named: Vec<Vec<u8>> = error
        .refusals()
        .iter()
        .map(|refusal| {
            let element = batch.attribute(refusal).expect("an element");
            let key = element.attributes().find(1).expect("a key");
            key.attributes().find(1).expect("a value").value.to_vec()
        })
        .collect();
    assert_eq!(named, [700_u16.to_be_bytes(), 1500_u16.to_be_bytes()]);
}

/// Whether the kernel says which element it refuses: nft then marks this one, else the whole command.
fn names_elements(node: &Netns) -> bool {
    let probe = "nft 'add table ip p; add set ip p s { type inet_service; elements = { 2 }; }'
        nft 'create element ip p s { 1, 2 }' 2>&1 || true
        nft delete table ip p";
    node.sh(probe).matches('^').count() == 1
}

#[test]
fn rehearsal_changes_nothing_and_finds_errors() {
    let node = Netns::new();
    let mut socket = open(&node, Options::default());
    let before = generation(&mut socket);
    let mut good = Batch::new(None);
    table(&mut good);
    socket.rehearse(&mut good).unwrap();
    let mut bad = Batch::new(None);
    ports(&mut bad, [1]);
    let error = socket.rehearse(&mut bad).unwrap_err();
    assert!(error.is_refusal(Errno::NOENT), "{error}");
    assert_eq!(generation(&mut socket), before);
    assert_eq!(node.sh("nft list ruleset"), "");
}

#[test]
fn changed_tables_refuse_a_batch_bound_to_a_generation() {
    let node = Netns::new();
    let mut socket = open(&node, Options::default());
    let stale = generation(&mut socket);
    node.sh("nft add table ip other");
    let mut batch = Batch::new(Some(stale));
    table(&mut batch);
    let error = socket.commit(&mut batch).unwrap_err();
    assert!(matches!(error, NetlinkError::StaleGeneration), "{error}");
    assert!(!error.is_uncertain());
    assert!(elements(&mut socket).unwrap_err().is_refusal(Errno::NOENT));
}

#[test]
fn lost_answers_are_uncertain_and_the_next_call_works() {
    let node = Netns::new();
    let mut socket = open(&node, Options::default());
    let mut batch = Batch::new(None);
    table(&mut batch);
    socket.commit(&mut batch).unwrap();
    let mut deaf = open(
        &node,
        Options {
            receive_buffer: 1,
            ..Options::default()
        },
    );
    // the kernel answers each of these; the answers do not fit such a small buffer
    let mut batch = Batch::new(None);
    for port in 1..400 {
        let acknowledged = inet(NEWSETELEM, flags::CREATE | flags::ACK);
        batch.message(acknowledged, |encoder| {
            encoder.text(1, "t");
            encoder.text(2, "s");
            encoder.nest(3, |encoder| {
                encoder.nest(1, |encoder| {
                    let port = u16::to_be_bytes(port);
                    encoder.nest(1, |encoder| encoder.bytes(1, &port));
                });
            });
        });
    }
    let error = node.run(|| deaf.commit(&mut batch)).unwrap_err();
    assert!(matches!(error, NetlinkError::Lost), "{error}");
    assert!(error.is_uncertain());
    // the change was made, and the socket is a new one that receives no old answers
    assert_eq!(node.run(|| elements(&mut deaf)).unwrap(), 399);
}

#[test]
fn missing_things_are_named_by_the_kernel() {
    let node = Netns::new();
    let mut socket = open(&node, Options::default());
    let mut batch = Batch::new(None);
    batch.message(inet(DELTABLE, 0), |encoder| encoder.text(1, "nowhere"));
    let error = socket.commit(&mut batch).unwrap_err();
    assert!(error.is_refusal(Errno::NOENT), "{error}");
    let named = batch.attribute(&error.refusals()[0]).unwrap();
    assert_eq!(named.text(), Some("nowhere"));
}

#[test]
fn subscription_receives_changes_with_the_port_of_their_sender() {
    let node = Netns::new();
    let mut hearing = open(
        &node,
        Options {
            groups: 1 << 6,
            ..Options::default()
        },
    );
    let mut socket = open(&node, Options::default());
    let mut batch = Batch::new(None);
    table(&mut batch);
    socket.commit(&mut batch).unwrap();
    let mut heard = Vec::new();
    while !heard.iter().any(|(kind, _)| *kind == NEWGEN) {
        hearing
            .hear(|message| heard.push((message.kind, message.port)))
            .unwrap();
    }
    assert!(
        heard.iter().all(|(_, port)| *port == socket.port()),
        "{heard:?}"
    );
}
