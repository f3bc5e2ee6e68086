//! Netlink to the kernel's netfilter subsystems (`nf_tables`, conntrack), in process.
//!
//! This module encodes and decodes messages itself: the tables of this project need few of them,
//! and a dump of 20,000 elements must take milliseconds. Nothing here knows what a mapping is.

mod batch;
mod error;
mod socket;
mod wire;

pub use batch::Batch;
pub use error::{NetlinkError, RefusedMessage};
pub use socket::{Options, Socket};
pub use wire::{
    Attribute, Attributes, Encoder, HEADER_BYTES, Header, MAX_ATTRIBUTE, Message, Messages, Nest,
    Truncated, flags,
};
