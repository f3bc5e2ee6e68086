//! Encodes and decodes messages and attributes: netlink (linux/netlink.h), nfnetlink (nfnetlink.h).
//!
//! Headers and lengths are in the byte order of the machine. Numbers in attributes of netfilter are
//! mostly big endian. Attributes begin at multiples of 4.

/// Flags of a message (linux/netlink.h).
pub mod flags {
    /// Every request has it.
    pub const REQUEST: u16 = 0x1;
    /// Answer in any case, with an error number or zero.
    pub const ACK: u16 = 0x4;
    /// Answer with all objects.
    pub const DUMP: u16 = 0x300;
    /// The listed objects changed during the dump.
    pub const DUMP_INTR: u16 = 0x10;
    /// Refuse if the object exists already.
    pub const EXCL: u16 = 0x200;
    /// Create the object if it does not exist.
    pub const CREATE: u16 = 0x400;
    /// Add the object after the existing ones.
    pub const APPEND: u16 = 0x800;
    /// On an error: the request is repeated without its payload.
    pub const CAPPED: u16 = 0x100;
    /// On an error: attributes follow.
    pub const ACK_TLVS: u16 = 0x200;
}

/// Length of `nlmsghdr`.
pub const HEADER_BYTES: usize = 16;
/// Length of `nfgenmsg`, with which every netfilter message begins.
const NETFILTER_BYTES: usize = 4;
/// Length of an attribute's header.
const ATTRIBUTE_BYTES: usize = 4;
/// Longest value that an attribute's 16-bit length can express.
pub const MAX_ATTRIBUTE: usize = u16::MAX as usize - ATTRIBUTE_BYTES;
/// `NLA_F_NESTED`: the bit of an attribute's kind which says that it contains attributes.
const NESTED: u16 = 0x8000;
/// The kind without that bit and the byte order bit.
const KIND: u16 = 0x3fff;

/// The header of a netfilter message. The sequence number is set when the message is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Subsystem in the upper byte, message in the lower.
    pub kind: u16,
    /// See [`flags`].
    pub flags: u16,
    /// `NFPROTO_*`: 1 inet, 2 IPv4, 10 IPv6, 0 none.
    pub family: u8,
    /// Resource id; the subsystem in the two messages around a batch.
    pub resource: u16,
}

/// A nested attribute that is still open.
#[derive(Debug)]
#[must_use = "a nest that is not closed has no length"]
pub struct Nest(usize);

/// Encodes messages one after another.
///
/// It records a value or nest that is too long for its length field. The send is then refused, and
/// nothing is truncated silently.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
    oversized: bool,
}

impl Encoder {
    /// Writes one message.
    pub fn message(&mut self, header: Header, body: impl FnOnce(&mut Self)) {
        let start = self.begin(header);
        body(self);
        self.end(start);
    }

    pub(super) fn begin(&mut self, header: Header) -> usize {
        let Header {
            kind,
            flags,
            family,
            resource,
        } = header;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        // sequence number, then the sender's port, which the kernel fills in
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        start
    }

    pub(super) fn end(&mut self, start: usize) {
        match u32::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.oversized = true,
        }
    }

    /// Writes an attribute with its padding.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let Ok(length) = u16::try_from(value.len() + ATTRIBUTE_BYTES) else {
            self.oversized = true;
            return;
        };
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// Writes attributes that are encoded already.
    pub fn raw(&mut self, attributes: &[u8]) {
        self.bytes.extend_from_slice(attributes);
        self.pad();
    }

    /// Writes text with the NUL that the kernel expects.
    pub fn text(&mut self, kind: u16, value: &str) {
        let Ok(length) = u16::try_from(value.len() + 1 + ATTRIBUTE_BYTES) else {
            self.oversized = true;
            return;
        };
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    /// Writes a big endian number, the byte order of almost all numbers in netfilter.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Writes attributes inside an attribute.
    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let nest = self.open(kind);
        body(self);
        self.close(&nest);
    }

    /// Begins a nest, for content that a loop writes.
    pub fn open(&mut self, kind: u16) -> Nest {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        Nest(start)
    }

    /// Returns the length of a nest so far.
    #[must_use]
    pub fn length(&self, nest: &Nest) -> usize {
        self.bytes.len() - nest.0
    }

    /// Ends a nest.
    pub fn close(&mut self, nest: &Nest) {
        match u16::try_from(self.length(nest)) {
            Ok(length) => self.bytes[nest.0..nest.0 + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.oversized = true,
        }
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }

    /// Returns what was written.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns whether something did not fit its length field.
    #[must_use]
    pub fn is_oversized(&self) -> bool {
        self.oversized
    }

    /// Numbers the messages in order. Returns the number after the last.
    pub(super) fn number(&mut self, first: u32) -> u32 {
        let (mut at, mut sequence) = (0, first);
        while let Some(length) = u32_at(&self.bytes, at) {
            if let Some(field) = self.bytes.get_mut(at + 8..at + 12) {
                field.copy_from_slice(&sequence.to_ne_bytes());
            }
            sequence = sequence.wrapping_add(1);
            at += (length as usize).max(HEADER_BYTES).next_multiple_of(4);
        }
        sequence
    }

    /// Adds flags to the message that begins at `start`.
    pub(super) fn add_flags(&mut self, start: usize, added: u16) {
        if let Some(field) = self.bytes.get_mut(start + 6..start + 8) {
            let old = u16::from_ne_bytes([field[0], field[1]]);
            field.copy_from_slice(&(old | added).to_ne_bytes());
        }
    }
}

/// One received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Subsystem and message.
    pub kind: u16,
    /// See [`flags`].
    pub flags: u16,
    /// Number of the request it answers.
    pub sequence: u32,
    /// Port of the socket that caused it; 0 is the kernel.
    pub port: u32,
    /// The bytes after the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Returns the attributes after `nfgenmsg`.
    #[must_use]
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.payload.get(NETFILTER_BYTES..).unwrap_or_default())
    }
}

/// The error for bytes that end within a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of the kernel is cut short")]
pub struct Truncated;

/// Splits a datagram into messages. Any bytes are accepted.
#[derive(Clone, Debug)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// Starts at the first message of a datagram.
    #[must_use]
    pub fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Truncated>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        if bytes.is_empty() {
            return None;
        }
        let length = u32_at(bytes, 0).map_or(0, |length| length as usize);
        let (Some(header), Some(payload)) = (
            bytes.first_chunk::<HEADER_BYTES>(),
            bytes.get(HEADER_BYTES..length),
        ) else {
            return Some(Err(Truncated));
        };
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            port: u32::from_ne_bytes([header[12], header[13], header[14], header[15]]),
            payload,
        }))
    }
}

/// One received attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its kind, without flags.
    pub kind: u16,
    /// Whether its kind says that it contains attributes; the kernel does not always set this bit.
    pub nested: bool,
    /// Its value, without padding.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// Returns the attributes that it contains.
    #[must_use]
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.value)
    }

    /// Returns its value as a big endian number.
    #[must_use]
    pub fn be32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    /// Returns its value as text, without the NUL.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        let text = std::str::from_utf8(self.value).ok()?;
        Some(text.strip_suffix('\0').unwrap_or(text))
    }
}

/// Splits bytes into attributes; ends at the first malformed one.
#[derive(Clone, Debug, Default)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Starts at the first attribute in these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Returns the first attribute of that kind.
    #[must_use]
    pub fn find(self, kind: u16) -> Option<Attribute<'a>> {
        let mut attributes = self;
        Iterator::find(&mut attributes, |attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    #[inline]
    fn next(&mut self) -> Option<Attribute<'a>> {
        let bytes = std::mem::take(&mut self.0);
        let [length, length_high, kind, kind_high] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([length, length_high]));
        let kind = u16::from_ne_bytes([kind, kind_high]);
        let value = bytes.get(ATTRIBUTE_BYTES..length)?;
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute {
            kind: kind & KIND,
            nested: kind & NESTED != 0,
            value,
        })
    }
}

/// Returns the number at an offset, in the byte order of the machine.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let number = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(number.try_into().ok()?))
}

#[cfg(test)]
mod tests;
