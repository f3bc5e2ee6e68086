//! `e2e-bench control`: the cost of a change with 20,000 mappings present (2,000 with iptables):
//! add one, delete one, read all back, and restore all after the rules were flushed. It also
//! measures how long altered rules stay, with 500 mappings.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Result;
use portmapping_shared::{Mapping, Protocol};

use super::lab::{FIRST_PORT, IPTABLES_MAPPINGS, Lab, Node, mappings, ports};
use super::ours::{Backend, Ours, ms};
use super::peers::portmap::{self, Kind, Plugins};
use super::report::{Bar, Report, Row};
use super::stats::{median, ratio};
use super::{Options, folder};
use e2e::progress::{Step, say};

mod bare;
mod repair;

const ROUNDS: u16 = 5;
const MOST: u16 = 20_000;
/// The number of mappings of a busy node.
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
    Ours(Backend, Ours, Vec<Mapping>),
    /// Plain rules without our layout, for the same kind of iptables.
    Bare(Backend),
    Plugin(Kind),
}

pub(super) fn run(options: &Options) -> Result<Report> {
    measure(options, MOST, IPTABLES_MAPPINGS, SOME)
}

fn measure(options: &Options, most: u16, iptables: u16, some: u16) -> Result<Report> {
    let plugins = Plugins::find(&folder("control")?)?;
    portmap::verify(&plugins)?;
    let mut lab = Lab::new()?;
    // the first port is added and deleted; with it, the mappings have the measured number
    let host_ports = |backend: Backend| -> Vec<u16> {
        ports(backend.most(most, iptables))
            .into_iter()
            .filter(|port| *port != FIRST_PORT)
            .collect()
    };
    let one = mappings(Protocol::Tcp, &[FIRST_PORT])?;
    let mut all = Vec::new();
    let step = Step::start("nodes with mappings");
    for backend in Backend::ALL {
        let node = lab.node()?;
        let mut ours = backend.open(&node.netns)?;
        let present = mappings(Protocol::Tcp, &host_ports(backend))?;
        ours.create(&node.netns, &present)?;
        let ours = Participant::Ours(backend, ours, present);
        all.push((node, ours, Samples::default()));
        if let Some(flavour) = backend.flavour() {
            let node = lab.node()?;
            bare::load(&node.netns, flavour, &host_ports(backend))?;
            all.push((node, Participant::Bare(backend), Samples::default()));
        }
        for kind in backend.rivals() {
            let node = lab.node()?;
            kind.rules("tcp", &host_ports(backend)).load(&node.netns)?;
            all.push((node, Participant::Plugin(*kind), Samples::default()));
        }
    }
    step.done(all.len());
    let count = all.len();
    options.rounds(ROUNDS).run(count, |round, index| {
        let (node, participant, samples) = &mut all[index];
        match participant {
            Participant::Ours(backend, ours, present) => {
                turn(*backend, ours, node, present, &one, samples)
            }
            Participant::Bare(backend) => {
                let Some(flavour) = backend.flavour() else {
                    return Ok(());
                };
                let (mut adds, mut deletes) = (Vec::new(), Vec::new());
                for _ in 0..CHANGES {
                    adds.push(bare::change(&node.netns, flavour, 'A', FIRST_PORT)?);
                    deletes.push(bare::change(&node.netns, flavour, 'D', FIRST_PORT)?);
                }
                samples.add.push(median(&adds));
                samples.delete.push(median(&deletes));
                Ok(())
            }
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
    let mut report = report(&all, most, iptables);
    // repair is measured on an idle machine, without the nodes of the other participants
    drop(all);
    for row in repair::measure(some)? {
        report.push(row);
    }
    Ok(report)
}

/// Runs our turn. Each change is read back, but that is not part of its time.
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
    // the driver does not read an unchanged table, so a change comes before each read
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

fn report(all: &[(Node, Participant, Samples)], most: u16, iptables: u16) -> Report {
    let mut report = Report::default();
    let plugin = |wanted: Kind| {
        all.iter()
            .find_map(|(_, participant, samples)| match participant {
                Participant::Plugin(kind) if *kind == wanted => Some(samples),
                _ => None,
            })
    };
    let floor = |wanted: Backend| {
        all.iter()
            .find_map(|(_, participant, samples)| match participant {
                Participant::Bare(backend) if *backend == wanted => Some(("bare rules", samples)),
                _ => None,
            })
    };
    for (_, participant, samples) in all {
        let Participant::Ours(backend, ..) = participant else {
            continue;
        };
        let (name, bars) = (backend.name(), backend.bars());
        let mut rows = |title: &str, bar: Bar, of: fn(&Samples) -> &Vec<f64>| {
            let ours = of(samples);
            let count = backend.most(most, iptables);
            let row = Row::new(format!("{name}: {title} at {count}"), "ms", median(ours));
            let rivals = backend.rivals().iter();
            let rivals = rivals.filter_map(|rival| Some((rival.name(), plugin(*rival)?)));
            let mut rows = Vec::new();
            for (rival, theirs) in floor(*backend).into_iter().chain(rivals) {
                let theirs = of(theirs);
                if !theirs.is_empty() {
                    let row = row.clone();
                    rows.push(row.against(rival, median(theirs), ratio(ours, theirs)));
                }
            }
            if rows.is_empty() {
                rows.push(row);
            }
            for (index, row) in rows.into_iter().enumerate() {
                // the bar is about our figure alone, so only one row has it
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
    fn every_participant_adds_and_deletes_and_our_rules_are_restored_after_a_flush() {
        let report = measure(&Options::for_tests(), 30, 20, 30)
            .expect("a round")
            .to_string();
        for words in [
            "nftables: all back after a flush at 30",
            "portmap (Debian), iptables-legacy",
            "iptables-legacy: delete one at 20",
            "bare rules",
            "iptables-nft: a jump of 30 deleted and back",
        ] {
            assert!(report.contains(words), "{report}");
        }
    }
}
