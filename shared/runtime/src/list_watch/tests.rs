//! Which requests are sent, by a script of responses. Product tests ask a real API server.

use std::convert::Infallible;
use std::sync::Arc;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::json;

use super::*;

/// A response: its status, its text, and how long it stays open after that. What follows [`MINUTELY`] in the text is
/// sent every minute until then.
type Reply = (u16, String, Duration);

const MINUTELY: &str = "MINUTELY";
const MINUTE: Duration = Duration::from_mins(1);

/// What was asked, by query.
type Queries = Arc<Mutex<Vec<String>>>;

/// Returns a watch of an API server that replies like this to the first, second ... request.
fn watch(
    reply: impl Fn(usize, &str) -> Reply + Send + Sync + 'static,
) -> (ListWatch<ConfigMap>, Queries) {
    let queries = Queries::default();
    let asked = Arc::clone(&queries);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let mut asked = asked.lock();
        let (status, text, open) = reply(asked.len(), &query);
        asked.push(query);
        let (text, beat) = text
            .split_once(MINUTELY)
            .map_or((text.clone(), ""), |(text, beat)| (text.to_owned(), beat));
        let (beat, open_until) = (beat.to_owned(), Instant::now() + open);
        let rest = stream::unfold(beat, move |beat| async move {
            let next = Instant::now() + MINUTE;
            tokio::time::sleep_until(next.min(open_until)).await;
            (next < open_until).then(|| (beat.clone(), beat))
        });
        let text = stream::iter([text]).chain(rest);
        let text = text.map(|text| Ok::<_, Infallible>(with_odd_bytes(&text)));
        let reply = http::Response::builder().status(status);
        let reply = reply.body(axum::body::Body::from_stream(text)).unwrap();
        async move { Ok::<_, Infallible>(reply) }
    });
    let client = Client::new(service, "default");
    let watch = ListWatch::new(client.clone(), Api::all(client), "a=b", "objects");
    (watch, queries)
}

/// A place where a byte stands that is no UTF-8.
const ODD: &str = "HERE";

fn with_odd_bytes(text: &str) -> Vec<u8> {
    let pieces: Vec<&[u8]> = text.split(ODD).map(str::as_bytes).collect();
    pieces.join(&0xff)
}

fn bookmark(version: usize, annotations: &serde_json::Value) -> String {
    let object = json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": { "resourceVersion": version.to_string(), "annotations": annotations },
    });
    json!({ "type": "BOOKMARK", "object": object }).to_string() + "\n"
}

fn streamed(version: usize, open: Duration) -> Reply {
    (200, bookmark(version, &json!({ LIST_END: "true" })), open)
}

fn cached(version: usize) -> Reply {
    let metadata = json!({ "resourceVersion": version.to_string() });
    let list = json!({ "metadata": metadata, "items": [] });
    (200, list.to_string(), Duration::ZERO)
}

fn refused(code: u16) -> Reply {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code });
    (code, status.to_string(), Duration::ZERO)
}

async fn lists(watch: &mut ListWatch<ConfigMap>, count: usize) {
    for _ in 0..count {
        assert_eq!(watch.next().await, Event::ListStarted);
        assert_eq!(watch.next().await, Event::ListComplete);
    }
}

fn is_streamed_list(query: &str) -> bool {
    query.contains("sendInitialEvents=true")
}

/// The version from which a request asks.
fn version(query: &str) -> Option<&str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find_map(|(key, value)| (key == "resourceVersion").then_some(value))
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ended_early_is_followed_by_a_consistent_list() {
    let early = Duration::from_secs(5);
    // the second is of an etcd that was restored
    let (mut watch, queries) = watch(move |index, _query| streamed([9, 3][index], early));
    lists(&mut watch, 2).await;
    let queries = queries.lock();
    assert!(
        queries.iter().all(|query| is_streamed_list(query)),
        "{queries:?}"
    );
    let versions: Vec<_> = queries.iter().map(|query| version(query)).collect();
    assert_eq!(versions, [Some(CONSISTENT); 2]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ended_as_planned_is_continued_until_a_list_is_due() {
    let planned = Duration::from_secs((*WATCH_SECONDS.end()).into());
    let (mut watch, queries) = watch(move |index, query| {
        let beat = bookmark(index, &json!({}));
        let begin = if is_streamed_list(query) {
            bookmark(index, &json!({ LIST_END: "true" }))
        } else {
            beat.clone()
        };
        (200, begin + MINUTELY + &beat, planned)
    });
    let start = Instant::now();
    lists(&mut watch, 2).await;
    assert!(start.elapsed() > PERIOD.mul_f64(1.0 - JITTER));
    let queries = queries.lock();
    let (list, watches) = queries.split_last().unwrap();
    assert!(is_streamed_list(list), "{queries:?}");
    for (index, query) in watches.iter().enumerate().skip(1) {
        let seen = (index - 1).to_string();
        assert_eq!(version(query), Some(seen.as_str()), "{queries:?}");
        assert!(!is_streamed_list(query), "{queries:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cached_list_is_not_older_than_what_was_seen_unless_it_is_consistent() {
    let early = (200, String::new(), Duration::from_secs(5));
    let replies = [
        refused(422),
        cached(9),
        early,
        refused(422),
        refused(504),
        cached(3),
    ];
    let (mut watch, queries) = watch(move |index, _query| replies[index].clone());
    lists(&mut watch, 2).await;
    let queries = queries.lock();
    let versions: Vec<_> = queries.iter().map(|query| version(query)).collect();
    let (streamed, consistent) = (Some(CONSISTENT), None);
    let expected = [
        streamed,
        Some("0"),
        Some("9"),
        streamed,
        Some("9"),
        consistent,
    ];
    assert_eq!(versions, expected);
    assert!(queries[4].contains("resourceVersionMatch=NotOlderThan"));
    // a page that is not from the cache costs the API server a read of all pods
    assert!(
        queries.iter().all(|query| !query.contains("limit=")),
        "{queries:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn lists_that_break_in_the_middle_are_made_less_and_less_often() {
    let object = json!({ "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": "a" } });
    let item = json!({ "type": "ADDED", "object": object }).to_string() + "\n";
    let (mut watch, _queries) = watch(move |_index, _query| (200, item.clone(), Duration::ZERO));
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(watch.next().await, Event::ListStarted);
        assert!(matches!(watch.next().await, Event::Listed(_)));
    }
    // the longest wait is 2 s
    assert!(
        start.elapsed() > Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

/// As the API server passes on what a user wrote into the managedFields of an object.
#[tokio::test(start_paused = true)]
async fn a_byte_that_is_no_utf8_does_not_break_a_watch_or_a_list() {
    let odd = |kind: &str| {
        let object = json!({
            "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": "a" }, "data": { ODD: "" },
        });
        json!({ "type": kind, "object": object }).to_string() + "\n"
    };
    let end = bookmark(1, &json!({ LIST_END: "true" }));
    let text = odd("ADDED") + &end + &odd("MODIFIED");
    let (mut watch, _queries) = watch(move |_index, _query| (200, text.clone(), PERIOD));
    for _event in 0..2 {
        watch.next().await;
    }
    assert_eq!(watch.next().await, Event::ListComplete);
    assert!(matches!(watch.next().await, Event::Applied(_)));
}

#[tokio::test(start_paused = true)]
async fn lists_whose_watch_ends_at_once_are_made_less_and_less_often() {
    let end = bookmark(1, &json!({ LIST_END: "true" }));
    let (mut watch, _queries) = watch(move |_index, _query| (200, end.clone(), Duration::ZERO));
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(watch.next().await, Event::ListStarted);
        assert_eq!(watch.next().await, Event::ListComplete);
    }
    assert!(
        start.elapsed() > Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

/// A proxy acknowledges what a dead API server does not read.
#[tokio::test(start_paused = true)]
async fn a_watch_without_a_bookmark_is_given_up_after_some_minutes_at_most() {
    let end = bookmark(1, &json!({ LIST_END: "true" }));
    let (mut watch, _queries) = watch(move |_index, _query| (200, end.clone(), PERIOD));
    assert_eq!(watch.next().await, Event::ListStarted);
    assert_eq!(watch.next().await, Event::ListComplete);
    let start = Instant::now();
    assert_eq!(watch.next().await, Event::ListStarted);
    assert!(
        start.elapsed() < Duration::from_mins(3),
        "{:?}",
        start.elapsed()
    );
}
