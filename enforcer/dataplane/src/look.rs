//! Reading the kernel beside changes: programs that print whole tables take their time, and no pod
//! that starts meanwhile shall wait for them.

use std::thread;

use super::forward::Filters;
use super::iptables::Tables;

/// What a driver wants to read, and then what was read. It is done without the driver, which may
/// change rules meanwhile; it takes the look for outdated then.
#[derive(Debug, Default)]
pub struct Look {
    /// Table nat of both families.
    pub(super) tables: Option<Tables>,
    /// The filter tables.
    pub(super) filters: Option<Filters>,
}

impl Look {
    /// Runs the programs, in the network namespace of the caller. Blocks.
    pub fn read(&mut self) {
        thread::scope(|scope| {
            if let Some(tables) = &mut self.tables {
                scope.spawn(|| tables.read());
            }
            if let Some(filters) = &mut self.filters {
                filters.read();
            }
        });
    }
}
