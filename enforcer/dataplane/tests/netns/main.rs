//! Tests the dataplane drivers with the real kernel, in separate network namespaces.
//!
//! ```text
//!   client 172.30.0.2 ---- 172.30.0.1 node 10.88.0.1 --- bridge --- pod1 10.88.0.11
//!          fd30::2         172.30.0.3      fd88::1              \-- pod2 10.88.0.12
//! ```
//!
//! The tests need root. They leave nothing behind: the namespaces have no names and end with their
//! test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed; clippy.toml knows functions marked #[test] only"
)]

mod announced;
mod burst;
mod choose;
mod conntrack;
mod contest;
mod damage;
mod detect;
mod dnat;
mod early;
mod established;
mod faults;
mod firewalls;
mod foreign;
mod foreign_life;
mod forward;
mod hairpin;
mod host_addresses;
mod host_ip;
mod invalid;
mod lab;
mod layouts;
mod limits;
mod masquerade;
mod netlink;
mod netns;
mod nf_tables_missing;
mod nftables;
mod programs;
mod range;
mod reading;
mod removal;
mod sctp;
mod serve;
mod switch;

/// Makes one test per kind of iptables from a function that takes the kind.
macro_rules! for_each_flavour {
    ($($name:ident),+ $(,)?) => {
        mod nft {
            $(#[test] fn $name() { super::$name(portmapping_dataplane::Flavour::Nft); })+
        }
        mod legacy {
            $(#[test] fn $name() { super::$name(portmapping_dataplane::Flavour::Legacy); })+
        }
    };
}
pub(crate) use for_each_flavour;

/// Makes one test per backend and kind of iptables from a function that takes the backend.
macro_rules! for_each_backend {
    ($($name:ident),+ $(,)?) => {
        mod nft {
            $(#[test] fn $name() { super::$name(portmapping_dataplane::Flavour::Nft.into()); })+
        }
        mod legacy {
            $(#[test] fn $name() { super::$name(portmapping_dataplane::Flavour::Legacy.into()); })+
        }
        mod nftables {
            $(#[test] fn $name() { super::$name(crate::lab::Backend::Nftables); })+
        }
    };
}
pub(crate) use for_each_backend;
