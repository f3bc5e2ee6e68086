//! The events of a watch, one on each line, decoded as they arrive.

use std::io;

use futures::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use kube::api::WatchEvent;
use serde::de::DeserializeOwned;

use super::items::{ItemsError, LONGEST, decode};

/// The events of a watch that goes on.
pub(super) struct Events<R>(R);

impl<R: AsyncBufRead + Unpin> Events<R> {
    pub(super) fn new(body: R) -> Self {
        Self(body)
    }

    /// Returns the next event; none at the end of the response.
    pub(super) async fn next<K: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<WatchEvent<K>>, ItemsError> {
        let mut line = Vec::new();
        let mut response = (&mut self.0).take(LONGEST as u64);
        let read = response.read_until(b'\n', &mut line).await;
        match read.map_err(ItemsError::Read)? {
            0 => Ok(None),
            LONGEST => Err(ItemsError::TooLong),
            _ if !line.ends_with(b"\n") => {
                Err(ItemsError::Read(io::ErrorKind::UnexpectedEof.into()))
            }
            _ => decode(&line).map(Some),
        }
    }
}
