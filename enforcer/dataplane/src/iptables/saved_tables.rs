//! All tables of one kind of iptables, as text.

use std::panic::resume_unwind;
use std::thread;

use super::commands::Commands;
use crate::DataplaneError;
use crate::change_monitor::GenerationSocket;
use crate::exec::Tools;
use crate::family::Family;
use crate::flavour::Flavour;

/// All tables of one kind of iptables, as text.
#[derive(Debug)]
pub struct SavedTables {
    pub(crate) flavour: Flavour,
    /// The generation of `nf_tables` before the read; None for iptables-legacy, which has none.
    pub(crate) generation: Option<u32>,
    pub(crate) ipv4: Result<String, DataplaneError>,
    pub(crate) ipv6: Result<String, DataplaneError>,
    /// Our part of each family, where a rule of another program cannot be printed.
    own: Vec<(Family, String)>,
}

impl SavedTables {
    /// Reads both address families at the same time. Changes nothing, and blocks.
    #[must_use]
    pub fn read(flavour: Flavour, tools: &Tools) -> Self {
        let generation = (flavour == Flavour::Nft)
            .then(|| GenerationSocket::default().current())
            .flatten();
        let read = |family| Commands::new(family, flavour, tools.clone()).save_all();
        thread::scope(|scope| {
            let ipv6 = scope.spawn(move || read(Family::V6));
            let ipv4 = read(Family::V4);
            let ipv6 = ipv6.join().unwrap_or_else(|panic| resume_unwind(panic));
            let own = [(Family::V4, &ipv4), (Family::V6, &ipv6)];
            let own = own.into_iter().filter_map(|(family, text)| {
                text.as_ref().err().filter(|error| error.is_unprintable())?;
                (flavour == Flavour::Nft).then_some(())?;
                let own = Commands::new(family, flavour, tools.clone()).save_own();
                let own = own.inspect_err(|error| {
                    tracing::warn!(%error, %flavour, "our rules of an earlier start cannot be read");
                });
                Some((family, own.ok()?))
            });
            Self {
                own: own.collect(),
                flavour,
                generation,
                ipv4,
                ipv6,
            }
        })
    }

    /// Returns our part of one family; None if it could not be read.
    pub(crate) fn own(&self, family: Family) -> Option<&str> {
        let own = self.own.iter().find(|(of, _)| *of == family);
        self.of(family).or(own.map(|(_, text)| text.as_str()))
    }

    /// Returns the text of one family; None if it could not be read.
    pub(crate) fn of(&self, family: Family) -> Option<&str> {
        let text = match family {
            Family::V4 => &self.ipv4,
            Family::V6 => &self.ipv6,
        };
        text.as_deref().ok()
    }
}
