//! Errors of the communication with the kernel.

use std::fmt;
use std::io;
use std::time::Duration;

use rustix::io::Errno;

use super::super::system_error::{DENIED, limit};
use super::wire::{Attributes, HEADER_BYTES, Message, flags, u32_at};

/// Extended acknowledgement: the kernel's error text (`NLMSGERR_ATTR_MSG`).
const MESSAGE: u16 = 1;
/// Extended acknowledgement: offset of the attribute it is about (`NLMSGERR_ATTR_OFFS`).
const OFFSET: u16 = 2;

/// No error number is larger (linux/err.h).
const MAX_ERRNO: i32 = 4095;

/// A failure of the communication with the kernel, or a refusal by the kernel.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be opened.
    #[error(
        "cannot open a netlink socket to netfilter: the kernel needs nf_tables (CONFIG_NETFILTER_NETLINK), the container the capability NET_ADMIN{}", limit(.0)
    )]
    Open(#[source] io::Error),
    /// An attribute is longer than its 16-bit length field can express.
    #[error("a netlink attribute of more than 65,531 bytes cannot be sent")]
    Oversized,
    /// The send buffer is too small, and this process may not enlarge it. Nothing was changed.
    #[error(
        "{bytes} bytes do not fit the netlink send buffer; the capability NET_ADMIN lets it grow"
    )]
    TooLarge {
        /// Size of what was to be sent.
        bytes: usize,
    },
    /// The system refused to send. Nothing was changed.
    #[error("cannot send to the kernel over netlink")]
    Send(#[source] io::Error),
    /// The system refused to receive; the request may have been carried out.
    #[error("cannot receive from the kernel over netlink")]
    Receive(#[source] io::Error),
    /// No answer came in time; the request may have been carried out.
    #[error("the kernel did not answer over netlink within {} s", .0.as_secs_f32())]
    Deadline(Duration),
    /// Answers did not fit the receive buffer (`ENOBUFS`); the request may have been carried out.
    #[error(
        "answers of the kernel were lost (ENOBUFS); whether the change was made must be read back"
    )]
    Lost,
    /// The kernel's answer is malformed.
    #[error("an answer of the kernel over netlink is cut short")]
    Malformed,
    /// The listed objects changed during the dump.
    #[error("what was read changed during the read; read it again")]
    Interrupted,
    /// The tables changed since the generation that a batch is bound to. Nothing was changed.
    #[error("another program has changed the tables since they were read; read them again")]
    StaleGeneration,
    /// The kernel refused the request. If it was a batch, nothing was changed.
    #[error("the kernel refused: {}", Joined(.0))]
    Refused(Vec<RefusedMessage>),
}

impl NetlinkError {
    /// Returns the refusals; none if the error is another one.
    #[must_use]
    pub fn refusals(&self) -> &[RefusedMessage] {
        match self {
            Self::Refused(refusals) => refusals,
            _ => &[],
        }
    }

    /// Returns whether the kernel refused, and always with this error number.
    #[must_use]
    pub fn is_refusal(&self, errno: Errno) -> bool {
        let refusals = self.refusals();
        !refusals.is_empty() && refusals.iter().all(|refusal| refusal.errno == errno)
    }

    /// Returns whether a change may have been made despite the error.
    #[must_use]
    pub fn is_uncertain(&self) -> bool {
        matches!(
            self,
            Self::Receive(_) | Self::Deadline(_) | Self::Lost | Self::Malformed
        )
    }
}

/// One message that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedMessage {
    /// Which of the messages sent, counted from 0 (in a batch, 0 is the message that begins it).
    pub message: usize,
    /// The error number.
    pub errno: Errno,
    /// Offset of the attribute that it is about, in bytes from the start of that message.
    pub offset: Option<usize>,
    /// The kernel's error text, if it sends one.
    pub text: Option<String>,
}

impl fmt::Display for RefusedMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            message,
            errno,
            offset,
            text,
        } = self;
        write!(f, "{errno} at message {message}")?;
        if let Some(offset) = offset {
            write!(f, ", byte {offset}")?;
        }
        if let Some(text) = text {
            write!(f, ": {text}")?;
        }
        match *errno {
            Errno::PERM | Errno::ACCESS => {
                write!(f, "; the container needs the capability NET_ADMIN{DENIED}")
            }
            _ => Ok(()),
        }
    }
}

/// Reads a message of kind `NLMSG_ERROR`; None for an acknowledgement.
pub(super) fn refusal(message: &Message<'_>, first: u32) -> Option<RefusedMessage> {
    let code = u32_at(message.payload, 0)?.cast_signed();
    if code == 0 {
        return None;
    }
    let errno = match code.checked_neg() {
        Some(errno @ 1..=MAX_ERRNO) => Errno::from_raw_os_error(errno),
        _ => Errno::PROTO,
    };
    let mut refusal = RefusedMessage {
        message: message.sequence.wrapping_sub(first) as usize,
        errno,
        offset: None,
        text: None,
    };
    if message.flags & flags::ACK_TLVS != 0 {
        let repeated = if message.flags & flags::CAPPED != 0 {
            HEADER_BYTES
        } else {
            u32_at(message.payload, 4).map_or(0, |length| length as usize)
        };
        let after = 4_usize.saturating_add(repeated).next_multiple_of(4);
        for attribute in Attributes::new(message.payload.get(after..).unwrap_or_default()) {
            match attribute.kind {
                MESSAGE => refusal.text = attribute.text().map(str::to_owned),
                OFFSET => {
                    refusal.offset = u32_at(attribute.value, 0).map(|offset| offset as usize);
                }
                _ => {}
            }
        }
    }
    Some(refusal)
}

struct Joined<'a>(&'a [RefusedMessage]);

/// How many refusals an error text names; a batch has one for each message that is refused.
const NAMED: usize = 3;

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, refusal) in self.0.iter().take(NAMED).enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{refusal}")?;
        }
        match self.0.len().checked_sub(NAMED) {
            Some(more @ 1..) => write!(f, "; and {more} more"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
