//! Turns the measurements into rows: ours against the limit, against ours, and against the peers.

use portmapping_shared::Protocol::{self, Tcp, Udp};

use super::{COUNTS, Carrier, Case, Measured, PEERS};
use crate::ours::Backend;
use crate::report::{Bar, Report, Row};
use crate::stats::{median, ratio};

/// All cases with their samples, and the rows so far.
struct Tables<'a> {
    all: &'a [Measured],
    report: Report,
}

impl Tables<'_> {
    fn find(
        &self,
        carrier: Carrier,
        mappings: u16,
        protocol: Protocol,
        unmapped: bool,
    ) -> Option<&Measured> {
        let case = Case {
            carrier,
            mappings,
            protocol,
            unmapped,
        };
        self.all.iter().find(|measured| measured.case == case)
    }

    /// Adds a row of ours against theirs, at the percentile that `of` takes. Adds none if either
    /// was not measured.
    fn compare(
        &mut self,
        name: String,
        ours: Case,
        theirs: Case,
        bar: Bar,
        of: fn(&Measured) -> &[f64],
    ) {
        let samples =
            |Case {
                 carrier,
                 mappings,
                 protocol,
                 unmapped,
             }| { self.find(carrier, mappings, protocol, unmapped).map(of) };
        let (Some(ours), Some(times)) = (samples(ours), samples(theirs)) else {
            return;
        };
        let peer = match theirs.mappings {
            1 => "1 mapping",
            _ => theirs.carrier.name(),
        };
        let row = Row::new(name, "us", median(ours));
        let row = row
            .against(peer, median(times), ratio(ours, times))
            .bar(bar);
        self.report.push(row);
    }
}

fn p50(measured: &Measured) -> &[f64] {
    &measured.p50
}

fn p99(measured: &Measured) -> &[f64] {
    &measured.p99
}

pub(super) fn report(all: &[Measured]) -> Report {
    let report = Report::default();
    let mut tables = Tables { all, report };
    for backend in Backend::ALL {
        rows(backend, &mut tables);
    }
    tables.report
}

fn rows(backend: Backend, tables: &mut Tables<'_>) {
    let name = backend.name();
    let case = |carrier, mappings, protocol, unmapped| Case {
        carrier,
        mappings,
        protocol,
        unmapped,
    };
    let ours =
        |mappings, protocol, unmapped| case(Carrier::Ours(backend), mappings, protocol, unmapped);
    let plain = |carrier, protocol| case(carrier, 0, protocol, false);
    let limit = |protocol| plain(Carrier::RoutedAndTracked, protocol);
    let most = Carrier::Ours(backend).most();
    let (last, udp, unmapped) = (
        ours(most, Tcp, false),
        ours(most, Udp, false),
        ours(most, Tcp, true),
    );
    let title = format!("{name}: connect p50, last of {most}");
    tables.compare(title.clone(), last, limit(Tcp), backend.bars().connect, p50);
    let unmapped_title = format!("{name}: connect p50, port not mapped");
    tables.compare(
        unmapped_title.clone(),
        unmapped,
        case(Carrier::RoutedAndTracked, 0, Tcp, true),
        Bar::AtMostRatio(1.10),
        p50,
    );
    let growth = format!("{name}: connect p50, growth to {most}");
    tables.compare(
        growth,
        last,
        ours(1, Tcp, false),
        Bar::AtMostRatio(1.05),
        p50,
    );
    let udp_title = format!("{name}: UDP round trip p50, last of {most}");
    tables.compare(
        udp_title.clone(),
        udp,
        limit(Udp),
        Bar::AtMostRatio(1.15),
        p50,
    );
    let tail = format!("{name}: connect p99, last of {most}");
    tables.compare(tail, last, limit(Tcp), Bar::None, p99);
    for count in COUNTS.into_iter().filter(|count| *count < most) {
        let title = format!("{name}: connect p50, last of {count}");
        tables.compare(title, ours(count, Tcp, false), limit(Tcp), Bar::None, p50);
    }
    tables.compare(
        title.clone(),
        last,
        plain(Carrier::Routed, Tcp),
        Bar::None,
        p50,
    );
    tables.compare(
        udp_title.clone(),
        udp,
        plain(Carrier::Routed, Udp),
        Bar::None,
        p50,
    );
    // peers that are measured with the same number; in kube-proxy with nftables the number has no
    // effect, because it finds a Service in a map
    let as_many = |peer: &Carrier| match peer {
        Carrier::KubeProxyNftables => backend == Backend::Nftables,
        _ => peer.most() == most,
    };
    for peer in PEERS.into_iter().filter(as_many) {
        let most = peer.most();
        tables.compare(
            title.clone(),
            last,
            case(peer, most, Tcp, false),
            Bar::None,
            p50,
        );
        tables.compare(
            unmapped_title.clone(),
            unmapped,
            case(peer, most, Tcp, true),
            Bar::None,
            p50,
        );
        tables.compare(
            udp_title.clone(),
            udp,
            case(peer, most, Udp, false),
            Bar::None,
            p50,
        );
    }
}
