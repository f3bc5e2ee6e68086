//! Frames over a tokio stream.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use portmapping_keeper::wire::{self, Envelope, Reply, Request, VERSION};

/// A connection to a keeper.
#[derive(Debug)]
pub(super) struct Stream {
    stream: UnixStream,
    /// The bytes of the next frame received so far, so that a cancelled read loses nothing.
    buffer: Vec<u8>,
}

impl Stream {
    pub(super) async fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    pub(super) async fn ask(&mut self, request: Request) -> io::Result<Reply> {
        self.send(request).await?;
        self.recv().await
    }

    pub(super) async fn send(&mut self, request: Request) -> io::Result<()> {
        let frame = wire::encode(&Envelope {
            v: VERSION,
            request,
        })?;
        self.stream.write_all(&frame).await
    }

    /// Receives the next frame. Cancel-safe.
    pub(super) async fn recv(&mut self) -> io::Result<Reply> {
        loop {
            if let Some((prefix, rest)) = self.buffer.split_first_chunk::<4>() {
                let length = wire::length(*prefix)?;
                if let Some(json) = rest.get(..length) {
                    let reply = wire::decode(json);
                    self.buffer.drain(..4 + length);
                    return reply;
                }
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
