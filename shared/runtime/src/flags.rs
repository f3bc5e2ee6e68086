//! Values of flags and environment variables.

use std::time::Duration;

/// Units of a duration, longest first, in seconds.
const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];

/// Parses `30s`, `5m`, `12h`, `365d` or `250ms`: one whole number and one unit.
pub fn duration(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || InvalidDuration(text.chars().take(40).collect());
    if let Some(number) = text.strip_suffix("ms") {
        return number
            .parse()
            .map(Duration::from_millis)
            .map_err(|_| invalid());
    }
    let (number, seconds) = UNITS
        .iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)))
        .ok_or_else(invalid)?;
    let number: u64 = number.parse().map_err(|_| invalid())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(invalid)
}

/// Text that is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: write 250ms, 30s, 5m, 12h or 365d")]
pub struct InvalidDuration(String);

#[cfg(test)]
mod tests;
