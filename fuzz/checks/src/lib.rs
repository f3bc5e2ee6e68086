//! What must hold for any bytes from outside. The fuzzer calls these functions with generated
//! bytes; the tests call them with the corpus.
//!
//! Each function returns if the check passes and panics if it fails. This crate owns the checks; it knows
//! neither the fuzzer nor where bytes come from.
//!
//! ```text
//! fuzzer (any bytes) ---+
//!                       +--> a check --> the product's own parsers
//! corpus (the tests) ---+
//! ```

// the fuzzer finds a failed check by its panic
#![allow(clippy::panic, clippy::expect_used, clippy::missing_panics_doc)]

mod http1and2;

use std::net::IpAddr;
use std::time::Duration;

use json_patch::PatchOperation;
use portmapping_enforcer::cni::result;
use portmapping_shared::annotation::{self, Value};
use portmapping_shared::{PodSpec, PodUid, PortRequest};
use portmapping_webhook::mutate::{self, Verdict};
use portmapping_webhook::review::{self, Answer, Subject};

pub use http1and2::http;

const MAX_PORTS: usize = 64;
/// Far above the 200 quoted characters and the text around them, in bytes.
const MAX_MESSAGE_BYTES: usize = 2_000;
const SPEC: &str = r#"{"containers":[{"ports":[{"containerPort":80,"name":"web"},
    {"containerPort":53,"protocol":"UDP","hostPort":53},{"containerPort":9}]}],
    "initContainers":[{"restartPolicy":"Always","ports":[{"containerPort":80,"hostIP":"10.0.0.1"}]}]}"#;

fn spec() -> PodSpec {
    serde_json::from_str(SPEC).expect("a spec")
}

/// Checks that a valid request is small and that its mark reads back as the same request.
fn granted(request: &PortRequest, spec: &PodSpec) {
    assert!(request.ports.len() <= MAX_PORTS);
    if !request.ports.is_empty() {
        let mark = request.to_mark();
        let again = PortRequest::from_mark(&mark, spec, MAX_PORTS).expect("a mark of ours");
        assert_eq!(again.to_mark(), mark);
    }
}

/// Checks the value of the annotation: a request, a copied result, or anything else.
pub fn annotation(data: &[u8]) {
    let Ok(value) = std::str::from_utf8(data) else {
        return;
    };
    let spec = spec();
    let class = annotation::classify(value);
    match PortRequest::resolve(value, &spec, MAX_PORTS) {
        Ok(request) => {
            assert!(!matches!(class, Value::Invalid(_)));
            granted(&request, &spec);
        }
        Err(invalid) => assert!(invalid.to_string().len() < MAX_MESSAGE_BYTES),
    }
    if let Some(entries) = annotation::decode(value) {
        let text = annotation::encode(&entries);
        assert_eq!(annotation::decode(&text), Some(entries));
    }
}

/// Checks the request mark, which users can forge where the admission policy is missing.
pub fn mark(data: &[u8]) {
    let Ok(value) = std::str::from_utf8(data) else {
        return;
    };
    let spec = spec();
    match PortRequest::from_mark(value, &spec, MAX_PORTS) {
        Ok(request) => granted(&request, &spec),
        Err(invalid) => assert!(invalid.to_string().len() < MAX_MESSAGE_BYTES),
    }
}

/// Checks the body of a review. For a pod the patch must apply, and a second review of the patched
/// pod must change nothing.
pub fn review(data: &[u8]) {
    let review = match review::parse(data) {
        Ok(review) => review,
        Err(malformed) => return assert!(malformed.to_string().len() < MAX_MESSAGE_BYTES),
    };
    let Subject::Pod(pod) = &review.subject else {
        return;
    };
    let verdict = mutate::judge(pod, MAX_PORTS);
    let answer = review::encode(&review.uid, &Answer::Verdict(&verdict)).expect("an answer");
    let answer: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
    assert_eq!(answer["response"]["uid"], review.uid.as_str());
    let Verdict::Allow { patch, .. } = verdict else {
        return;
    };
    // review::parse skips numbers that this type cannot hold
    let Ok(mut body) = serde_json::from_slice::<serde_json::Value>(data) else {
        return;
    };
    let object = body.pointer_mut("/request/object").expect("a pod");
    json_patch::patch(object, &patch).expect("the patch applies");
    let after = serde_json::to_vec(&body).expect("JSON");
    let Subject::Pod(after) = review::parse(&after).expect("a review").subject else {
        panic!("the patched object is not a pod")
    };
    let Verdict::Allow { patch: again, .. } = mutate::judge(&after, MAX_PORTS) else {
        panic!("the second review denies the patched pod")
    };
    assert_eq!(again, Vec::<PatchOperation>::new());
}

/// Checks a CNI result of the container runtime: at most one pod, with addresses that a pod can have.
pub fn cni(data: &[u8]) {
    let node = IpAddr::from([10, 0, 0, 11]);
    match result::parse(data, Duration::ZERO, |ip| ip == node) {
        Ok(None) => {}
        Ok(Some(sandbox)) => {
            assert!(!sandbox.ips.is_empty());
            let odd = |ip: &IpAddr| *ip == node || ip.is_loopback() || ip.is_unspecified();
            assert!(!sandbox.ips.iter().any(odd));
            // the uid becomes part of a rule's comment
            assert!(sandbox.uid.as_str().parse::<PodUid>().is_ok());
        }
        Err(unusable) => assert!(unusable.to_string().len() < MAX_MESSAGE_BYTES),
    }
}

#[cfg(test)]
mod tests;
