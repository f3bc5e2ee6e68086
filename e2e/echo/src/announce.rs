//! Announces the start of this program to an address, which then calls back.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long the receiver may take: it calls back before it answers.
const PATIENCE: Duration = Duration::from_mins(1);

/// Sends the pod's name, and waits for a byte.
pub(crate) fn announce(address: SocketAddr, name: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{name}\n").as_bytes())?;
    stream.read_exact(&mut [0])
}
