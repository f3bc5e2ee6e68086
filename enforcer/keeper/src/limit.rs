//! The limit of open files: each held TCP or UDP port needs one.

use portmapping_shared::{PortRange, PortSet};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::KeeperError;

/// Descriptors kept free for connections, listeners and standard streams.
pub(super) const SPARE_FILES: usize = 64;

/// Raises the soft limit to the hard limit and returns how many sockets fit. Fails if the ranges
/// have more ports.
pub(super) fn raise(ranges: &[PortRange]) -> Result<usize, KeeperError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        )
        .map_err(|errno| KeeperError::RaiseLimit {
            source: errno.into(),
        })?;
    }
    let files = maximum.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    });
    fit(ranges, files)
}

/// Returns how many sockets fit into a limit of `files`.
fn fit(ranges: &[PortRange], files: usize) -> Result<usize, KeeperError> {
    let mut ports = PortSet::default();
    for range in ranges {
        ports.insert_range(*range);
    }
    let room = files.saturating_sub(SPARE_FILES);
    if ports.len() > room {
        let ranges = ranges
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",");
        return Err(KeeperError::RangeTooLarge {
            ranges,
            ports: ports.len(),
            files,
            room,
        });
    }
    Ok(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_port_once_and_keeps_spare_files() {
        let ranges: Vec<PortRange> = ["20000-20099", "20050-20149"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        assert_eq!(fit(&ranges, 150 + SPARE_FILES).unwrap(), 150);
        let error = fit(&ranges, 149 + SPARE_FILES).unwrap_err().to_string();
        for part in [
            "20000-20099,20050-20149",
            "150 ports",
            "213 open files",
            "149",
        ] {
            assert!(error.contains(part), "{part} missing in: {error}");
        }
    }
}
