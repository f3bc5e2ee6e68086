//! The first thing a program may do that wants to be called: to say that it is there.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long the other side may take: it calls back before it answers.
const PATIENCE: Duration = Duration::from_mins(1);

/// Says the pod's name, and waits for a byte.
pub(crate) fn announce(address: SocketAddr, name: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{name}\n").as_bytes())?;
    stream.read_exact(&mut [0])
}
