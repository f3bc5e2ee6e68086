//! `e2e-bench webhook`: our admission webhook and one written with controller-runtime.
//!
//! The server runs on one core, the client on the other, with the same bodies and certificate. Each
//! round runs every server once, in a different order; a row compares medians over the rounds.

mod client;
mod contestant;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hyper::body::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::runtime;

use self::client::{Load, Target, Version};
pub(crate) use self::contestant::cpu_time;
use self::contestant::{Contestant, Kind, Stage, pin};
use super::Options;
use super::peers;
use super::report::{Bar, Report, Row};
use super::stats::{Rounds, median, percentile, ratio};
use e2e::artifacts::{go, rust};
use e2e::install::NAMESPACE;
use e2e::progress::say;

/// The core of the client; the servers have another.
const CORE: usize = 1;
const FLOOD: Duration = Duration::from_secs(3);
const LARGE: Duration = Duration::from_secs(2);
const PACED: Duration = Duration::from_secs(4);
const SERIAL: Duration = Duration::from_secs(2);
/// Reviews per second while latency is measured.
const RATE: u32 = 1000;
/// The default number of rounds, which take about five minutes.
const ROUNDS: u16 = 5;
/// How often each server is started in a round.
const STARTS: usize = 3;
/// A review of a pod of a `ReplicaSet`: 8 KB, four ports in two containers.
const REVIEW: &[u8] = include_bytes!("../peers/webhook/review.json");
/// Size of the annotations of the large review in bytes. The API server refuses this size only
/// after admission.
const LARGE_BYTES: usize = 1024 * 1024;

/// What is measured of each server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Figure {
    StartMs,
    RateHttp2,
    RateHttp1,
    CpuMicros,
    LargeCpuMicros,
    PacedP50Ms,
    PacedP99Ms,
    SerialP50Ms,
    SerialP99Ms,
    ResidentKib,
}

/// Values of all rounds.
type Figures = BTreeMap<(Kind, Figure), Vec<f64>>;

/// The request bodies.
struct Bodies {
    small: Bytes,
    large: Bytes,
}

impl Bodies {
    fn new() -> Result<Self> {
        let mut review: Value = serde_json::from_slice(REVIEW).context("the review's file")?;
        let small = Bytes::from(serde_json::to_vec(&review)?);
        let annotations = review
            .pointer_mut("/request/object/metadata/annotations")
            .and_then(Value::as_object_mut)
            .context("the review's pod has no annotations")?;
        // text with escapes, and text without
        let escaped = "x\u{e9}\"\\n\u{65e5}\u{672c}".repeat(LARGE_BYTES / 4 / 13);
        annotations.insert("example.com/escaped".to_owned(), json!(escaped));
        annotations.insert(
            "example.com/plain".to_owned(),
            json!("y".repeat(LARGE_BYTES - escaped.len())),
        );
        let large = Bytes::from(serde_json::to_vec(&review)?);
        Ok(Self { small, large })
    }
}

impl Figure {
    const ALL: [Self; 10] = [
        Self::RateHttp2,
        Self::RateHttp1,
        Self::CpuMicros,
        Self::LargeCpuMicros,
        Self::PacedP50Ms,
        Self::PacedP99Ms,
        Self::SerialP50Ms,
        Self::SerialP99Ms,
        Self::ResidentKib,
        Self::StartMs,
    ];

    /// Returns the name in the table, the unit, and the bar against the hand-written peer.
    fn row(self) -> (&'static str, &'static str, Bar) {
        match self {
            Self::StartMs => ("start to first answer", "ms", Bar::AtMostRatio(1.0)),
            Self::RateHttp2 => ("reviews of 8 KB, HTTP/2", "1/s", Bar::AtLeastRatio(3.0)),
            Self::RateHttp1 => ("reviews of 8 KB, HTTP/1.1", "1/s", Bar::AtLeastRatio(3.0)),
            Self::CpuMicros => ("CPU per review of 8 KB", "us", Bar::AtMostRatio(0.2)),
            Self::LargeCpuMicros => ("CPU per review of 1.1 MB", "us", Bar::AtMostRatio(0.05)),
            Self::PacedP50Ms => ("p50 at 1,000 reviews/s", "ms", Bar::None),
            Self::PacedP99Ms => ("p99 at 1,000 reviews/s", "ms", Bar::AtMostRatio(0.5)),
            Self::SerialP50Ms => ("p50, one after another", "ms", Bar::None),
            Self::SerialP99Ms => ("p99, one after another", "ms", Bar::AtMost(1.0)),
            Self::ResidentKib => ("resident memory under load", "KiB", Bar::AtMostRatio(0.25)),
        }
    }
}

/// Runs the benchmark.
pub(super) fn run(options: &Options) -> Result<Report> {
    let folder = super::folder("webhook")?;
    let authority = certificates(&folder)?;
    let stage = Stage {
        ours: rust::release(&["webhook"])?.join("webhook"),
        peer: go::program(
            "peer-webhook",
            &peers::sources("webhook"),
            &["go.mod", "go.sum", "main.go"],
        )?,
        tls: folder,
    };
    let figures = measure(&stage, &authority, &mut options.rounds(ROUNDS))?;
    Ok(report(&figures))
}

/// Writes a server certificate for loopback to a folder in the form that the servers read; returns
/// the CA certificate. It includes the name of our Service: without it, our webhook logs at each
/// start that the API server will refuse the certificate.
fn certificates(folder: &Path) -> Result<CertificateDer<'static>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let mut params = CertificateParams::new(Vec::new())?;
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let service = format!("webhook.{NAMESPACE}.svc");
    params.subject_alt_names = vec![
        SanType::IpAddress(loopback),
        SanType::DnsName(service.try_into()?),
    ];
    let key = KeyPair::generate()?;
    let leaf = params.signed_by(&key, &authority)?;
    for (file, text) in [
        ("tls.crt", leaf.pem()),
        ("tls.key", key.serialize_pem()),
        ("ca.crt", authority.as_ref().pem()),
    ] {
        let path = folder.join(file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(authority.as_ref().der().clone())
}

/// Makes one row per figure and peer; bars apply to the hand-written peer.
fn report(figures: &Figures) -> Report {
    let mut report = Report::default();
    for peer in [Kind::HandWritten, Kind::WholeObject] {
        for figure in Figure::ALL {
            let (Some(mine), Some(theirs)) = (
                figures.get(&(Kind::Ours, figure)),
                figures.get(&(peer, figure)),
            ) else {
                continue;
            };
            let (name, unit, bar) = figure.row();
            let row = Row::new(name, unit, median(mine))
                .against(peer.name(), median(theirs), ratio(mine, theirs))
                .bar(if peer == Kind::HandWritten {
                    bar
                } else {
                    Bar::None
                });
            report.push(row);
        }
    }
    report
}

/// Measures all servers in every round.
fn measure(
    stage: &Stage,
    authority: &CertificateDer<'static>,
    rounds: &mut Rounds,
) -> Result<Figures> {
    let bodies = Bodies::new()?;
    let mut figures = Figures::new();
    rounds.run(Kind::ALL.len(), |round, who| {
        let kind = Kind::ALL[who];
        say(format_args!("round {}: {}", round + 1, kind.name()));
        // the client's thread binds itself to its core
        let measured = thread::scope(|scope| {
            let client = scope.spawn(|| {
                pin(CORE)?;
                let runtime = runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(contest(kind, stage, authority, &bodies))
            });
            client.join()
        });
        let Ok(measured) = measured else {
            bail!("the client panicked");
        };
        for (figure, value) in measured.with_context(|| format!("measure {}", kind.name()))? {
            figures.entry((kind, figure)).or_default().push(value);
        }
        Ok(())
    })?;
    Ok(figures)
}

/// Measures one server in one round.
async fn contest(
    kind: Kind,
    stage: &Stage,
    authority: &CertificateDer<'static>,
    bodies: &Bodies,
) -> Result<Vec<(Figure, f64)>> {
    let mut figures = Vec::new();
    for _ in 1..STARTS {
        let (_server, _target, took) = started(kind, stage, authority, bodies).await?;
        figures.push((Figure::StartMs, millis(took)));
    }
    let (server, target, took) = started(kind, stage, authority, bodies).await?;
    figures.push((Figure::StartMs, millis(took)));
    // fills the caches before anything is measured
    target
        .flood(Version::Two, 4, 8, Duration::from_millis(500))
        .await?;

    let serial = target.flood(Version::Two, 1, 1, SERIAL).await?.millis();
    figures.push((Figure::SerialP50Ms, percentile(&serial, 50)));
    figures.push((Figure::SerialP99Ms, percentile(&serial, 99)));
    let paced = target
        .schedule(Version::Two, 4, RATE, PACED)
        .await?
        .millis();
    figures.push((Figure::PacedP50Ms, percentile(&paced, 50)));
    figures.push((Figure::PacedP99Ms, percentile(&paced, 99)));
    let (load, cpu) = watched(&server, target.flood(Version::Two, 8, 16, FLOOD)).await?;
    figures.push((Figure::RateHttp2, load.rate()));
    figures.push((Figure::CpuMicros, cpu));
    let (load, _) = watched(&server, target.flood(Version::One, 32, 1, FLOOD)).await?;
    figures.push((Figure::RateHttp1, load.rate()));
    figures.push((Figure::ResidentKib, precise(server.resident()?)));
    let large = target.sending(&bodies.large);
    let (_, cpu) = watched(&server, large.flood(Version::Two, 2, 2, LARGE)).await?;
    figures.push((Figure::LargeCpuMicros, cpu));
    Ok(figures)
}

/// Starts a server; returns it after its first correct answer, with the time that this took.
async fn started(
    kind: Kind,
    stage: &Stage,
    authority: &CertificateDer<'static>,
    bodies: &Bodies,
) -> Result<(Contestant, Target, Duration)> {
    let server = Contestant::start(kind, stage)?;
    let target = Target::new(server.address, authority.clone())?.sending(&bodies.small);
    loop {
        match target.once(Version::Two).await {
            Ok(answer) => {
                let took = server.begun.elapsed();
                check(&answer).with_context(|| format!("{} answers", kind.name()))?;
                return Ok((server, target, took));
            }
            Err(error) if server.begun.elapsed() > Duration::from_secs(20) => {
                return Err(error.context(format!("{} did not answer", kind.name())));
            }
            Err(_) => tokio::time::sleep(Duration::from_micros(500)).await,
        }
    }
}

/// Checks that a server does all of the work: it allows the pod, and its patch is not empty.
fn check(answer: &Bytes) -> Result<()> {
    let review: Value = serde_json::from_slice(answer)?;
    let response = &review["response"];
    ensure!(response["allowed"] == true, "not allowed: {response}");
    let patch = response["patch"].as_str().context("no patch")?;
    ensure!(patch.len() > 100, "the patch is empty: {patch}");
    Ok(())
}

/// Runs a load; also returns the server's processor time per answer in microseconds.
async fn watched(
    server: &Contestant,
    load: impl Future<Output = Result<Load>>,
) -> Result<(Load, f64)> {
    let before = server.cpu()?;
    let load = load.await?;
    let used = server.cpu()?.saturating_sub(before);
    let answers = u32::try_from(load.latencies.len()).unwrap_or(u32::MAX);
    ensure!(answers > 0, "nothing was answered");
    let micros = used.as_secs_f64() * 1e6 / f64::from(answers);
    Ok((load, micros))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "KiB of memory, far below 2^52")]
fn precise(number: u64) -> f64 {
    number as f64
}
