//! The items of a Kubernetes list, decoded one at a time while the response arrives: a whole list may
//! be larger than the memory limit.

use std::io;

use futures::{AsyncBufRead, AsyncBufReadExt};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Longest item, event, and rest of a list: etcd takes objects of 1.5 MiB, which JSON may write six
/// times as long.
pub(super) const LONGEST: usize = 16 << 20;

/// Why a list or a watch cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ItemsError {
    #[error("the response was cut off")]
    Read(#[source] io::Error),
    #[error("the response has no objects that can be read")]
    Json(#[source] serde_json::Error),
    #[error("an object has more than {LONGEST} bytes")]
    TooLong,
}

/// Decodes an object. A byte that is no UTF-8 is replaced: a user may write some into managedFields, and the
/// API server passes them on.
pub(super) fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, ItemsError> {
    serde_json::from_str(&String::from_utf8_lossy(json)).map_err(ItemsError::Json)
}

/// The items of a list that arrives.
pub(super) struct Items<R> {
    body: R,
    splitter: Splitter,
}

impl<R: AsyncBufRead + Unpin> Items<R> {
    pub(super) fn new(body: R) -> Self {
        Self {
            body,
            splitter: Splitter::default(),
        }
    }

    /// Returns the next item; none at the end of the response.
    pub(super) async fn next<K: DeserializeOwned>(&mut self) -> Result<Option<K>, ItemsError> {
        loop {
            let bytes = self.body.fill_buf().await.map_err(ItemsError::Read)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let (read, item) = self.splitter.read(bytes)?;
            self.body.consume_unpin(read);
            if let Some(item) = item {
                return decode(&item).map(Some);
            }
        }
    }

    /// Returns the version of the list; fails if the response is not complete.
    pub(super) fn version(&self) -> Result<String, ItemsError> {
        #[derive(Deserialize)]
        struct List {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            resource_version: String,
        }
        let list: List = decode(&self.splitter.rest)?;
        Ok(list.metadata.resource_version)
    }
}

/// Splits the text of a list. The items are the objects of the one array in the outermost object.
/// Only brackets and strings are told apart: the decoder finds what is wrong inside.
#[derive(Default)]
struct Splitter {
    /// The list without its items.
    rest: Vec<u8>,
    item: Vec<u8>,
    depth: usize,
    in_array: bool,
    in_string: bool,
    escaped: bool,
}

impl Splitter {
    /// Reads up to the end of an item. Returns how many bytes were read, and the item.
    fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<Vec<u8>>), ItemsError> {
        for (index, &byte) in bytes.iter().enumerate() {
            let outside = self.depth;
            self.follow(byte);
            if !self.in_array || outside.max(self.depth) <= 2 {
                // what stands between items is a comma
                if !self.in_array || outside != 2 || self.depth != 2 {
                    self.rest.push(byte);
                }
            } else {
                self.item.push(byte);
                if self.depth == 2 {
                    return Ok((index + 1, Some(std::mem::take(&mut self.item))));
                }
            }
        }
        if self.rest.len().max(self.item.len()) > LONGEST {
            return Err(ItemsError::TooLong);
        }
        Ok((bytes.len(), None))
    }

    fn follow(&mut self, byte: u8) {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => {
                if self.depth == 1 {
                    self.in_array = byte == b'[';
                }
                self.depth += 1;
            }
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
