//! The two ends of a test connection: `enforcer test-answer` in a mapped pod, `enforcer test-reach` on
//! another node.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::args::{TestAnswerArgs, TestReachArgs};

/// Longest wait for a connection, and then for its answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Tries before a port counts as unreachable: a packet may be lost.
const TRIES: usize = 2;
/// Longest answer that is read: the name of a pod.
const MAX_ANSWER: u64 = 253;
/// Where a container leaves a message for its pod's status.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Why an address does not answer as it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreachable {
    #[error(
        "no answer within 5 s. Packets are dropped on the way: does a firewall, a security group or a \
         NetworkPolicy let the host ports through?"
    )]
    NoAnswer,
    #[error(
        "refused: packets arrive, but no rule leads them to the pod. Does another program change the rules of \
         the node, or does the address belong to another machine?"
    )]
    Refused,
    #[error("another program answered {0:?}")]
    Other(String),
    #[error(transparent)]
    Failed(io::Error),
}

/// Runs `enforcer test-answer`: answers every connection with the pod's name.
pub fn answer(args: &TestAnswerArgs) -> anyhow::Result<()> {
    // a node may have no IPv6
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, args.port))
        .or_else(|_no_ipv6| TcpListener::bind((Ipv4Addr::UNSPECIFIED, args.port)))
        .with_context(|| format!("cannot listen on port {}", args.port))?;
    loop {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        // a client that reads nothing must not keep others waiting
        let _ = stream.set_write_timeout(Some(LIMIT));
        let _ = stream.write_all(args.name.as_bytes());
    }
}

/// Runs `enforcer test-reach`: fails if the address does not answer with the pod's name.
pub fn reach(args: &TestReachArgs) -> anyhow::Result<()> {
    if let Err(error) = ask(args.address, &args.name) {
        let text = error.to_string();
        let _ = std::fs::write(Path::new(TERMINATION_LOG), &text);
        bail!(text);
    }
    Ok(())
}

/// Connects and compares the answer.
pub(super) fn ask(address: SocketAddr, name: &str) -> Result<(), Unreachable> {
    let mut last = Unreachable::NoAnswer;
    for _ in 0..TRIES {
        match read(address) {
            Ok(answer) if answer == name => return Ok(()),
            Ok(answer) => return Err(Unreachable::Other(answer)),
            Err(error) => {
                last = match error.kind() {
                    ErrorKind::ConnectionRefused => Unreachable::Refused,
                    ErrorKind::TimedOut | ErrorKind::WouldBlock => Unreachable::NoAnswer,
                    _ => Unreachable::Failed(error),
                };
            }
        }
    }
    Err(last)
}

fn read(address: SocketAddr) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests;
