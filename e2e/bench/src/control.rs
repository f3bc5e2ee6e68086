//! `e2e-bench control`: what a change costs with 20,000 mappings present: one more, one less, reading
//! all back, and restoring all after the rules were flushed; and how long rules stay altered
//! with 500.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Result;
use portmapping_shared::{Mapping, Protocol};

use super::lab::{FIRST_PORT, Lab, Node, mappings, ports};
use super::ours::{Backend, Ours, ms};
use super::peers::portmap::{self, Kind, Plugins};
use super::report::{Bar, Report, Row};
use super::stats::{median, ratio};
use super::{Options, folder};
use e2e::progress::{Step, say};

mod repair;

const ROUNDS: u16 = 5;
const MOST: u16 = 20_000;
/// Mappings of a busy node.
const SOME: u16 = 500;
/// Our changes are much shorter than a plugin's, so a turn has several.
const CHANGES: usize = 11;

/// Times per round, in ms; those of the plugins end with `delete`.
#[derive(Debug, Default)]
struct Samples {
    add: Vec<f64>,
    delete: Vec<f64>,
    read_back: Vec<f64>,
    restore: Vec<f64>,
}

enum Participant {
    Ours(Backend, Ours),
    Plugin(Kind),
}

pub(super) fn run(options: &Options) -> Result<Report> {
    measure(options, MOST, SOME)
}

fn measure(options: &Options, most: u16, some: u16) -> Result<Report> {
    let plugins = Plugins::find(&folder("control")?)?;
    portmap::verify(&plugins)?;
    let mut lab = Lab::new()?;
    // the first port is the one that comes and goes; the others make it 20,000 with it
    let host_ports: Vec<u16> = ports(most)
        .into_iter()
        .filter(|port| *port != FIRST_PORT)
        .collect();
    let present = mappings(Protocol::Tcp, &host_ports)?;
    let one = mappings(Protocol::Tcp, &[FIRST_PORT])?;
    let mut all = Vec::new();
    let step = Step::start(format!("nodes with {} mappings", present.len()));
    for backend in Backend::ALL {
        let node = lab.node()?;
        let mut ours = backend.open(&node.netns)?;
        ours.create(&node.netns, &present)?;
        all.push((node, Participant::Ours(backend, ours), Samples::default()));
    }
    for kind in Kind::ALL {
        let node = lab.node()?;
        kind.rules("tcp", &host_ports).load(&node.netns)?;
        all.push((node, Participant::Plugin(kind), Samples::default()));
    }
    step.done(all.len());
    let count = all.len();
    options.rounds(ROUNDS).run(count, |round, index| {
        let (node, participant, samples) = &mut all[index];
        match participant {
            Participant::Ours(backend, ours) => turn(*backend, ours, node, &present, &one, samples),
            Participant::Plugin(kind) => {
                for (operation, times) in [("ADD", &mut samples.add), ("DEL", &mut samples.delete)]
                {
                    let start = Instant::now();
                    plugins.run(*kind, operation, &node.netns, &lab.pods, &[FIRST_PORT])?;
                    times.push(ms(start));
                }
                say(format_args!("  round {}: {}", round + 1, kind.name()));
                Ok(())
            }
        }
    })?;
    let mut report = report(&all, most);
    // on an idle machine, without the others' nodes
    drop(all);
    for row in repair::measure(some)? {
        report.push(row);
    }
    Ok(report)
}

/// Our turn; every change is read back outside the clock.
fn turn(
    backend: Backend,
    ours: &mut Ours,
    node: &Node,
    present: &[Mapping],
    one: &[Mapping],
    samples: &mut Samples,
) -> Result<()> {
    let netns = &node.netns;
    let without: BTreeSet<Mapping> = present.iter().cloned().collect();
    let with: BTreeSet<Mapping> = present.iter().chain(one).cloned().collect();
    let (mut adds, mut deletes) = (Vec::new(), Vec::new());
    for _ in 0..CHANGES {
        adds.push(ours.create(netns, one)?);
        deletes.push(ours.remove(netns, one)?);
    }
    ours.verify(netns, &without)?;
    ours.create(netns, one)?;
    samples.add.push(median(&adds));
    samples.delete.push(median(&deletes));
    // a table that reads as it did before is only compared as text: something is changed in between
    let reads: Vec<f64> = (0..3)
        .map(|_| {
            ours.remove(netns, one)?;
            ours.create(netns, one)?;
            ours.verify(netns, &with)
        })
        .collect::<Result<_>>()?;
    samples.read_back.push(median(&reads));
    netns.sh(backend.flush())?;
    samples.restore.push(ours.restore(netns, &with)?);
    ours.verify(netns, &with)?;
    ours.remove(netns, one).map(drop)
}

fn report(all: &[(Node, Participant, Samples)], most: u16) -> Report {
    let mut report = Report::default();
    let plugin = |wanted: Kind| {
        all.iter()
            .find_map(|(_, participant, samples)| match participant {
                Participant::Plugin(kind) if *kind == wanted => Some(samples),
                _ => None,
            })
    };
    for (_, participant, samples) in all {
        let Participant::Ours(backend, _) = participant else {
            continue;
        };
        let (name, bars) = (backend.name(), backend.bars());
        let mut rows = |title: &str, bar: Bar, of: fn(&Samples) -> &Vec<f64>| {
            let ours = of(samples);
            let row = Row::new(format!("{name}: {title} at {most}"), "ms", median(ours));
            let mut rows = Vec::new();
            for rival in backend.rivals() {
                let theirs = plugin(*rival).map(of).filter(|times| !times.is_empty());
                if let Some(theirs) = theirs {
                    let row = row.clone();
                    rows.push(row.against(rival.name(), median(theirs), ratio(ours, theirs)));
                }
            }
            if rows.is_empty() {
                rows.push(row);
            }
            for (index, row) in rows.into_iter().enumerate() {
                // the bar is ours alone, so one row carries it
                report.push(if index == 0 { row.bar(bar) } else { row });
            }
        };
        rows("add one", bars.add, |samples| &samples.add);
        rows("delete one", bars.delete, |samples| &samples.delete);
        rows("read back and compare all", bars.read_back, |samples| {
            &samples.read_back
        });
        rows("all back after a flush", bars.restore, |samples| {
            &samples.restore
        });
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_adds_and_deletes_and_ours_come_back_after_a_flush() {
        let report = measure(&Options::for_tests(), 30, 30)
            .expect("a round")
            .to_string();
        for words in [
            "nftables: all back after a flush at 30",
            "portmap (Debian), iptables-legacy",
            "iptables-nft: a jump of 30 deleted and back",
        ] {
            assert!(report.contains(words), "{report}");
        }
    }
}
