//! Shows the result of a benchmark: rows with their bars, as a table and as JSON.

use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use e2e::progress::out;

/// The limit that a row must meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bar {
    /// The row is shown, but not judged.
    None,
    /// Ours is at most this many times the peer's.
    AtMostRatio(f64),
    /// Ours is at least this many times the peer's.
    AtLeastRatio(f64),
    /// Ours is at most this much, in the row's unit.
    AtMost(f64),
}

/// One thing measured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// What was measured, and with which of our backends.
    pub(crate) name: String,
    /// The unit of `ours` and `peer`: us, ms, MB, ...
    pub(crate) unit: &'static str,
    /// Our figure, a median over the rounds unless the name says otherwise.
    pub(crate) ours: f64,
    /// The figure that it is compared with.
    pub(crate) peer: Option<Peer>,
    /// What must be reached.
    pub(crate) bar: Bar,
}

/// The figure of another implementation for the same thing, from the same run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Peer {
    /// The name of the peer.
    pub(crate) name: String,
    /// Their figure, in the row's unit.
    pub(crate) value: f64,
    /// Ours divided by theirs: the median of the ratios within each round, if there are rounds. It
    /// can differ from the ratio of the medians.
    pub(crate) ratio: f64,
}

impl Row {
    /// Creates a row with a figure of ours alone.
    #[must_use]
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, ours: f64) -> Self {
        Self {
            name: name.into(),
            unit,
            ours,
            peer: None,
            bar: Bar::None,
        }
    }

    /// Sets the figure of a peer; `ratio` is [`Peer::ratio`].
    #[must_use]
    pub(crate) fn against(mut self, name: impl Into<String>, value: f64, ratio: f64) -> Self {
        let name = name.into();
        self.peer = Some(Peer { name, value, ratio });
        self
    }

    /// Sets what must be reached.
    #[must_use]
    pub(crate) fn bar(mut self, bar: Bar) -> Self {
        self.bar = bar;
        self
    }

    /// Returns whether the bar is met: true for a row without a bar, false for one that cannot be
    /// judged.
    #[must_use]
    pub(crate) fn ok(&self) -> bool {
        match self.bar {
            Bar::None => true,
            Bar::AtMostRatio(limit) => self.peer.as_ref().is_some_and(|peer| peer.ratio <= limit),
            Bar::AtLeastRatio(limit) => self.peer.as_ref().is_some_and(|peer| peer.ratio >= limit),
            Bar::AtMost(limit) => self.ours <= limit,
        }
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let peer = self.peer.as_ref();
        let mut map = serializer.serialize_map(Some(8))?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("unit", self.unit)?;
        map.serialize_entry("ours", &self.ours)?;
        map.serialize_entry("peer", &peer.map(|peer| peer.value))?;
        map.serialize_entry("peer_name", &peer.map(|peer| &peer.name))?;
        map.serialize_entry("ratio", &peer.map(|peer| peer.ratio))?;
        let bar = (self.bar != Bar::None).then(|| bar_text(self));
        map.serialize_entry("bar", &bar)?;
        map.serialize_entry("ok", &self.ok())?;
        map.end()
    }
}

/// All rows of a run, in the order in which they are shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report(Vec<Row>);

impl Report {
    /// Adds a row.
    pub(crate) fn push(&mut self, row: Row) {
        self.0.push(row);
    }

    /// Prints the table, and writes the rows to the file. An error names the bars that were missed,
    /// so that the program ends with a failure code.
    pub(crate) fn finish(&self, json: Option<&Path>) -> Result<()> {
        out!("{self}");
        if let Some(path) = json {
            let mut text = serde_json::to_string_pretty(&self.0).context("encode the rows")?;
            text.push('\n');
            fs::write(path, text)
                .with_context(|| format!("write the rows to {}", path.display()))?;
        }
        let missed: Vec<_> = self.0.iter().filter(|row| !row.ok()).collect();
        if missed.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = missed.iter().map(|row| row.name.as_str()).collect();
        bail!(
            "{} of {} bars missed: {}",
            missed.len(),
            self.0.iter().filter(|row| row.bar != Bar::None).count(),
            names.join("; ")
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["what", "ours", "peer", "ratio", "bar", ""].map(str::to_owned);
        let lines: Vec<_> = std::iter::once(head)
            .chain(self.0.iter().map(cells))
            .collect();
        let mut widths = [0; 6];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for line in lines {
            let mut text = String::new();
            for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
                // numbers are aligned to the right
                let _ = if matches!(column, 1 | 3) {
                    write!(text, "{cell:>width$}  ")
                } else {
                    write!(text, "{cell:<width$}  ")
                };
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

fn cells(row: &Row) -> [String; 6] {
    let unit = row.unit;
    let verdict = match row.bar {
        Bar::None => "",
        _ if row.ok() => "ok",
        _ => "MISSED",
    };
    let peer = row.peer.as_ref();
    [
        row.name.clone(),
        format!("{} {unit}", figure(row.ours)),
        peer.map(|peer| format!("{} {unit} ({})", figure(peer.value), peer.name))
            .unwrap_or_default(),
        peer.map(|peer| format!("{} x", figure(peer.ratio)))
            .unwrap_or_default(),
        bar_text(row),
        verdict.to_owned(),
    ]
}

fn bar_text(row: &Row) -> String {
    match row.bar {
        Bar::None => String::new(),
        Bar::AtMostRatio(limit) => format!("<= {limit} x"),
        Bar::AtLeastRatio(limit) => format!(">= {limit} x"),
        Bar::AtMost(limit) => format!("<= {limit} {}", row.unit),
    }
}

/// Formats a figure with three significant digits.
fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size if size >= 0.1 => 3,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests;
