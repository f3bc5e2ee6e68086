//! The writer of events against an API server that stores them and checks their size.

use std::collections::BTreeMap;
use std::convert::Infallible;

use http::{Method, Request, Response};
use kube::client::Body;
use portmapping_shared::PodRef;
use serde_json::Value;

use super::*;

/// The stored events, by name.
type Stored = Arc<Mutex<BTreeMap<String, Value>>>;

fn api_server() -> (Events, Stored) {
    let stored = Stored::default();
    let store = Arc::clone(&stored);
    let service = tower::service_fn(move |request: Request<Body>| {
        let store = Arc::clone(&store);
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let body = serde_json::from_slice(&body).unwrap();
            let (status, answer) = answer(&store, &parts.method, parts.uri.path(), body);
            let answer = serde_json::to_vec(&answer).unwrap();
            let response = Response::builder().status(status).body(Body::from(answer));
            Ok::<_, Infallible>(response.unwrap())
        }
    });
    (Events::new(Client::new(service, "default"), "n1"), stored)
}

fn answer(stored: &Stored, method: &Method, path: &str, body: Value) -> (u16, Value) {
    let mut stored = stored.lock();
    let failure = |code: u16| {
        (
            code,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "", "message": ""}),
        )
    };
    let events = "/apis/events.k8s.io/v1/namespaces/ns/events";
    if method == Method::POST {
        assert_eq!(path, events);
        let name = body["metadata"]["name"].as_str().unwrap().to_owned();
        if name.len() > 253 || body["note"].as_str().unwrap().len() > 1024 {
            return failure(422);
        }
        assert!(stored.insert(name, body.clone()).is_none(), "a new name");
        return (201, body);
    }
    let name = path.strip_prefix(&format!("{events}/")).unwrap();
    match stored.get_mut(name) {
        None => failure(404),
        Some(event) => {
            event["series"] = body["series"].clone();
            (200, event.clone())
        }
    }
}

fn event(kind: EventKind, note: &str) -> PodEvent {
    let pod = PodRef {
        namespace: "ns".into(),
        name: "a".into(),
        uid: "uid-a".parse().unwrap(),
    };
    PodEvent {
        pod,
        kind,
        note: note.to_owned(),
    }
}

fn notes(stored: &Stored) -> Vec<String> {
    let stored = stored.lock();
    let mut notes: Vec<_> = stored
        .values()
        .map(|event| event["note"].as_str().unwrap().to_owned())
        .collect();
    notes.sort();
    notes
}

#[tokio::test]
async fn each_change_has_an_event_with_its_own_text() {
    let (events, stored) = api_server();
    for note in ["20000 -> 80", "20001 -> 80", "20002 -> 80"] {
        events.write(&event(EventKind::Mapped, note)).await.unwrap();
    }
    events
        .write(&event(EventKind::Released, "20002 -> 80"))
        .await
        .unwrap();
    let expected = ["20000 -> 80", "20001 -> 80", "20002 -> 80", "20002 -> 80"];
    assert_eq!(notes(&stored), expected);
    assert!(
        stored
            .lock()
            .values()
            .all(|event| event["series"].is_null())
    );
}

#[tokio::test]
async fn equal_events_are_one_series() {
    let (events, stored) = api_server();
    for _ in 0..3 {
        let same = event(EventKind::Repaired, "repaired");
        events.write(&same).await.unwrap();
    }
    let stored = stored.lock();
    assert_eq!(stored.len(), 1);
    let event = stored.values().next().unwrap();
    assert_eq!(event["series"]["count"], 3);
    assert!(event["series"]["lastObservedTime"].is_string());
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["regarding"]["uid"], "uid-a");
    assert_eq!(event["reportingInstance"], "n1");
}

#[tokio::test]
async fn a_deleted_event_is_created_again() {
    let (events, stored) = api_server();
    let same = event(EventKind::Mapped, "20000 -> 80");
    events.write(&same).await.unwrap();
    events.write(&same).await.unwrap();
    stored.lock().clear();
    events.write(&same).await.unwrap();
    assert_eq!(notes(&stored), ["20000 -> 80"]);
    events.write(&same).await.unwrap();
    let stored = stored.lock();
    assert_eq!(stored.values().next().unwrap()["series"]["count"], 2);
}

#[tokio::test]
async fn an_event_of_many_ports_or_a_long_pod_name_is_not_refused() {
    let (events, stored) = api_server();
    let mut long = event(EventKind::Mapped, &"ä".repeat(900));
    long.pod.name = format!("{}-b.{}", "a".repeat(233), "c".repeat(17));
    events.write(&long).await.unwrap();
    let stored = stored.lock();
    let (name, event) = stored.iter().next().unwrap();
    assert!(name.starts_with(&format!("{}-b.", "a".repeat(233))) && !name.contains(".."));
    assert!(event["note"].as_str().unwrap().ends_with("ä ..."));
}

#[test]
fn a_series_ends_after_its_time_and_the_oldest_is_forgotten_first() {
    let (mut recent, now) = (RecentEvents::default(), Instant::now());
    let key = |n: usize| -> Key {
        let uid = format!("uid-{n}").parse().unwrap();
        (uid, EventKind::Mapped, String::new())
    };
    for n in 0..=MAX_SERIES {
        let later = Duration::from_millis(n.try_into().unwrap());
        recent.record(key(n), "a".to_owned(), now + later);
    }
    assert_eq!(recent.0.len(), MAX_SERIES);
    assert_eq!(recent.find(&key(0), now + Duration::from_secs(2)), None);
    assert!(recent.find(&key(1), now + Duration::from_secs(2)).is_some());
    let over = now + SERIES_TIME + Duration::from_secs(2);
    assert_eq!(recent.find(&key(MAX_SERIES), over), None);
}
