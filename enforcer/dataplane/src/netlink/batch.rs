//! Many changes as one transaction of `nf_tables`: the kernel makes all of them or none.

use super::error::RefusedMessage;
use super::wire::{Attribute, Attributes, Encoder, Header, flags, u32_at};

/// `NFNL_MSG_BATCH_BEGIN`.
const BEGIN: u16 = 16;
/// `NFNL_MSG_BATCH_END`.
const END: u16 = 17;
/// `NFNL_BATCH_GENID`.
const GENERATION: u16 = 1;
/// `NFNL_SUBSYS_NFTABLES`, the subsystem of the batch.
const SUBSYSTEM: u16 = 10;
/// Length of a list after which the next message begins. One more element of the greatest length
/// must still fit the 65,535 bytes of a nested attribute.
const LIST_BYTES: usize = 48 * 1024;

/// A transaction being written.
#[derive(Clone, Debug)]
pub struct Batch {
    encoder: Encoder,
    /// Where each message begins.
    starts: Vec<usize>,
    closed: bool,
}

impl Batch {
    /// Creates an empty transaction. With a generation, the kernel refuses it if the tables of this
    /// namespace have changed since that generation.
    #[must_use]
    pub fn new(generation: Option<u32>) -> Self {
        let mut batch = Self {
            encoder: Encoder::default(),
            starts: Vec::new(),
            closed: false,
        };
        batch.frame(BEGIN, |encoder| {
            if let Some(generation) = generation {
                encoder.be32(GENERATION, generation);
            }
        });
        batch
    }

    fn frame(&mut self, kind: u16, body: impl FnOnce(&mut Encoder)) {
        let header = Header {
            kind,
            flags: flags::REQUEST,
            family: 0,
            resource: SUBSYSTEM,
        };
        self.starts.push(self.encoder.as_bytes().len());
        self.encoder.message(header, body);
    }

    /// Adds one change.
    pub fn message(&mut self, header: Header, body: impl FnOnce(&mut Encoder)) {
        self.starts.push(self.encoder.as_bytes().len());
        self.encoder.message(header, body);
    }

    /// Adds a list of items in as many messages as it needs. Each message begins with the same
    /// head. An item must be smaller than 16 KB.
    pub fn list<T>(
        &mut self,
        header: Header,
        head: impl Fn(&mut Encoder),
        list: u16,
        items: impl IntoIterator<Item = T>,
        item: impl Fn(&mut Encoder, T),
    ) {
        let mut items = items.into_iter().peekable();
        while items.peek().is_some() {
            self.message(header, |encoder| {
                head(encoder);
                let nest = encoder.open(list);
                while encoder.length(&nest) < LIST_BYTES
                    && let Some(next) = items.next()
                {
                    item(encoder, next);
                }
                encoder.close(&nest);
            });
        }
    }

    /// Returns whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.len() == 1
    }

    /// Ends the transaction, and requests an acknowledgement of its last change. Without `end`, the
    /// kernel checks all changes and makes none.
    pub(super) fn seal(&mut self, end: bool) -> &mut Encoder {
        if !self.closed {
            if let Some(start) = self.starts.last() {
                self.encoder.add_flags(*start, flags::ACK);
            }
            if end {
                self.frame(END, |_| {});
            }
            self.closed = true;
        }
        &mut self.encoder
    }

    /// Returns its length so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.encoder.as_bytes().len()
    }

    /// Returns the number of its messages, with those that begin and end the batch.
    pub(super) fn messages(&self) -> usize {
        self.starts.len()
    }

    /// Returns the attribute that a refusal is about.
    #[must_use]
    pub fn attribute(&self, refusal: &RefusedMessage) -> Option<Attribute<'_>> {
        let start = *self.starts.get(refusal.message)?;
        let bytes = self.encoder.as_bytes();
        let length = u32_at(bytes, start)? as usize;
        let message = bytes.get(start..start.checked_add(length)?)?;
        Attributes::new(message.get(refusal.offset?..)?).next()
    }
}

#[cfg(test)]
mod tests;
