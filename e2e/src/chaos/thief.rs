//! A process on a node that binds every port of the range that it can.

use std::collections::BTreeSet;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::record::count;
use super::{Chaos, RANGE};
use crate::visit;

/// How long the process binds ports.
const THEFT: Duration = Duration::from_millis(1500);
/// Ports it keeps at a time.
const LOOT: usize = 8;

impl Chaos {
    /// Binds random ports and keeps some for a moment. A mapped one must not be among them.
    pub(super) fn steal(&mut self, node: &str) -> Result<(u64, usize)> {
        let mut dice = self.dice.clone();
        self.dice.below(2);
        let (view, record, at) = (self.view.clone(), self.record.clone(), node.to_owned());
        visit::run_at(&self.cluster, node, move || {
            let (end, mut tries, mut loot) = (Instant::now() + THEFT, 0, Vec::new());
            let mut taken = BTreeSet::new();
            while Instant::now() < end {
                let protocol = if dice.chance(50) { "TCP" } else { "UDP" };
                let port = RANGE.0 + u16::try_from(dice.below(RANGE.1)).unwrap_or_default();
                tries += 1;
                count(&record.theft_tries);
                let before = view.mapped(&at);
                if let Some(socket) = take(protocol, port) {
                    let key = (protocol.to_owned(), port);
                    // mapped before and after, so it was not released or allocated in between
                    let mapped = before.contains(&key) && view.mapped(&at).contains(&key);
                    if mapped && !record.may_be_unheld(&at) {
                        record.violation(format!(
                            "theft: {protocol} {port} of {at} was mapped and could be bound"
                        ));
                    }
                    taken.insert(key);
                    loot.push(socket);
                    if loot.len() > LOOT {
                        loot.remove(0);
                    }
                }
                thread::sleep(Duration::from_millis(2));
            }
            (tries, taken.len())
        })
    }
}

/// Binds the port; it is free again when the socket is dropped.
fn take(protocol: &str, port: u16) -> Option<OwnedFd> {
    let address = ("0.0.0.0", port);
    match protocol {
        "UDP" => UdpSocket::bind(address).ok().map(OwnedFd::from),
        _ => TcpListener::bind(address).ok().map(OwnedFd::from),
    }
}
