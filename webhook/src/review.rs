//! `AdmissionReview` of admission.k8s.io/v1: bytes in, what to judge out; verdict in, bytes out.
//!
//! Own types rather than a client library's: decoding skips what the decision does not need, and
//! the patch goes out as the base64 string that the API asks for.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use portmapping_shared::{null_as_default, quoted};
use serde::{Deserialize, Serialize};

use crate::mutate::Verdict;
use crate::pod::Pod;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// Longest uid that is given back; the API server's are UUIDs of 36 characters.
const MAX_UID_BYTES: usize = 200;
/// How much of a parser's words an answer repeats, in characters: they may quote the input.
const MAX_QUOTED_CHARS: usize = 200;

/// A review that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Review {
    /// Names the review; the answer carries it too.
    pub uid: String,
    /// Namespace of the object.
    pub namespace: String,
    /// Whether nothing will be stored.
    pub dry_run: bool,
    /// What is asked about.
    pub subject: Subject,
}

/// What a review asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A pod that is being created.
    Pod(Box<Pod>),
    /// Anything else: none of our business.
    Other,
    /// A pod that makes no sense, and why.
    Unreadable(String),
}

/// A body that no answer with a uid can be given to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No JSON, or not of the shape.
    #[error("the body is no AdmissionReview: {0}")]
    Syntax(String),
    /// A version or kind that this program does not know.
    #[error("the body is {0}, not an AdmissionReview of admission.k8s.io/v1")]
    Kind(String),
    /// An answer of somebody else, or nothing.
    #[error("the AdmissionReview has no request")]
    NoRequest,
    /// Without it the API server cannot tell what is being answered.
    #[error("the AdmissionReview's request has no uid, or one of more than 200 bytes")]
    Uid,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Envelope<O> {
    #[serde(deserialize_with = "null_as_default")]
    api_version: String,
    #[serde(deserialize_with = "null_as_default")]
    kind: String,
    request: Option<Request<O>>,
}

impl<O> Default for Envelope<O> {
    fn default() -> Self {
        Self {
            api_version: String::new(),
            kind: String::new(),
            request: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<O> {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    resource: Resource,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    namespace: String,
    #[serde(default, deserialize_with = "null_as_default")]
    dry_run: bool,
    // not `default`: that would ask O for one
    object: Option<O>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Resource {
    group: String,
    version: String,
    #[serde(rename = "resource")]
    name: String,
}

/// Only what an answer needs when the object cannot be read.
type Skipped = serde::de::IgnoredAny;

/// Reads a review in one pass; a second one, which skips the object, only where that fails.
pub fn parse(body: &[u8]) -> Result<Review, Malformed> {
    match serde_json::from_slice::<Envelope<Pod>>(body) {
        Ok(envelope) => {
            let request = check(envelope)?;
            let subject = if request.creates_pod() {
                match request.object {
                    Some(pod) => Subject::Pod(Box::new(pod)),
                    None => Subject::Unreadable("the review carries no object".to_owned()),
                }
            } else {
                Subject::Other
            };
            Ok(Review {
                uid: request.uid,
                namespace: request.namespace,
                dry_run: request.dry_run,
                subject,
            })
        }
        Err(error) => {
            let skipped = serde_json::from_slice::<Envelope<Skipped>>(body)
                .map_err(|error| Malformed::Syntax(quoted(&error.to_string(), MAX_QUOTED_CHARS)))?;
            let request = check(skipped)?;
            // an object of another kind need not look like a pod
            let subject = if request.creates_pod() {
                Subject::Unreadable(quoted(&error.to_string(), MAX_QUOTED_CHARS))
            } else {
                Subject::Other
            };
            Ok(Review {
                uid: request.uid,
                namespace: request.namespace,
                dry_run: request.dry_run,
                subject,
            })
        }
    }
}

fn check<O>(envelope: Envelope<O>) -> Result<Request<O>, Malformed> {
    if (envelope.api_version.as_str(), envelope.kind.as_str()) != (API_VERSION, KIND) {
        let told = format!("{:?} of {:?}", envelope.kind, envelope.api_version);
        return Err(Malformed::Kind(quoted(&told, MAX_QUOTED_CHARS)));
    }
    let request = envelope.request.ok_or(Malformed::NoRequest)?;
    if request.uid.is_empty() || request.uid.len() > MAX_UID_BYTES {
        return Err(Malformed::Uid);
    }
    Ok(request)
}

impl<O> Request<O> {
    fn creates_pod(&self) -> bool {
        let Resource {
            group,
            version,
            name,
        } = &self.resource;
        (group.as_str(), version.as_str(), name.as_str()) == ("", "v1", "pods")
            && self.sub_resource.is_empty()
            && self.operation == "CREATE"
    }
}

/// An answer, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The verdict on a pod, or on what is none of our business.
    Verdict(&'a Verdict),
    /// The object could not be read, and why.
    Unreadable(&'a str),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reply<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    warnings: &'a [&'static str],
}

/// meta/v1 `Status`, the part that a refusal shows.
#[derive(Serialize)]
struct Status {
    code: u16,
    reason: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

impl Status {
    fn bad_request(message: String) -> Self {
        Self {
            code: 400,
            reason: "BadRequest",
            message,
        }
    }
}

/// Writes the answer to the review with this uid.
pub fn encode(uid: &str, answer: &Answer<'_>) -> Result<Vec<u8>, serde_json::Error> {
    let mut response = Response {
        uid,
        allowed: false,
        status: Status {
            code: 200,
            reason: "",
            message: String::new(),
        },
        patch_type: None,
        patch: None,
        warnings: &[],
    };
    match answer {
        Answer::Verdict(Verdict::Allow {
            reason,
            patch,
            warnings,
        }) => {
            response.allowed = true;
            response.status.reason = reason.as_str();
            response.warnings = warnings;
            if !patch.is_empty() {
                response.patch_type = Some("JSONPatch");
                response.patch = Some(STANDARD.encode(serde_json::to_vec(patch)?));
            }
        }
        Answer::Verdict(Verdict::Deny(invalid)) => {
            response.status = Status::bad_request(invalid.to_string());
        }
        Answer::Unreadable(why) => {
            response.status = Status::bad_request(format!("the pod cannot be read: {why}"));
        }
    }
    serde_json::to_vec(&Reply {
        api_version: API_VERSION,
        kind: KIND,
        response,
    })
}

#[cfg(test)]
mod tests;
