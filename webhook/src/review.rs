//! Reads and writes `AdmissionReview` of admission.k8s.io/v1.
//!
//! The types here hold only what the decision needs; a client library's types would decode and keep
//! the whole pod. Text that another program wrote is quoted in part.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use portmapping_shared::{null_as_default, quoted};
use serde::{Deserialize, Serialize};

use crate::mutate::Verdict;
use crate::pod::Pod;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// Longest uid that is copied into the response; the API server's have 36 characters.
const MAX_UID_BYTES: usize = 200;
/// Longest quotation of a parser's message, in characters: the message may repeat the input.
const MAX_QUOTED_CHARS: usize = 200;

/// A review, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Review {
    /// Identifies the review; the response repeats it.
    pub uid: String,
    /// Namespace of the object.
    pub namespace: String,
    /// Whether the API server will not store the object.
    pub dry_run: bool,
    /// The object under review.
    pub subject: Subject,
}

/// The object under review.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A pod that is being created.
    Pod(Box<Pod>),
    /// Anything else; it is admitted unchanged.
    Other,
    /// A pod that could not be decoded, and why.
    Unreadable(String),
}

/// A body without a usable uid, so that no review can be sent back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, or not the schema.
    #[error("the body is not an AdmissionReview: {0}")]
    Syntax(String),
    /// Another version or kind.
    #[error("the body is {0}, not an AdmissionReview of admission.k8s.io/v1")]
    Kind(String),
    /// A response, or an empty review.
    #[error("the AdmissionReview has no request")]
    NoRequest,
    /// Without the uid the API server cannot match the response to its request.
    #[error("the request of the AdmissionReview has no uid, or one over {MAX_UID_BYTES} bytes")]
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
    // without `#[serde(default)]`, which would require `O: Default`
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

/// Stands for an object that cannot be decoded.
type Skipped = serde::de::IgnoredAny;

/// Decodes a review in one pass. If the pod cannot be decoded, a second pass skips it.
pub fn parse(body: &[u8]) -> Result<Review, Malformed> {
    match serde_json::from_slice::<Envelope<Pod>>(body) {
        Ok(envelope) => review(envelope, |pod| match pod {
            Some(pod) => Subject::Pod(Box::new(pod)),
            None => Subject::Unreadable("the review contains no object".to_owned()),
        }),
        Err(error) => {
            let skipped = serde_json::from_slice::<Envelope<Skipped>>(body)
                .map_err(|error| Malformed::Syntax(quoted(&error.to_string(), MAX_QUOTED_CHARS)))?;
            review(skipped, |_| {
                Subject::Unreadable(quoted(&error.to_string(), MAX_QUOTED_CHARS))
            })
        }
    }
}

/// Checks the envelope. An object of another kind need not have a pod's schema.
fn review<O>(
    envelope: Envelope<O>,
    pod: impl FnOnce(Option<O>) -> Subject,
) -> Result<Review, Malformed> {
    let request = check(envelope)?;
    let creates_pod = request.creates_pod();
    Ok(Review {
        uid: request.uid,
        namespace: request.namespace,
        dry_run: request.dry_run,
        subject: if creates_pod {
            pod(request.object)
        } else {
            Subject::Other
        },
    })
}

fn check<O>(envelope: Envelope<O>) -> Result<Request<O>, Malformed> {
    if (envelope.api_version.as_str(), envelope.kind.as_str()) != (API_VERSION, KIND) {
        let found = format!("{:?} of {:?}", envelope.kind, envelope.api_version);
        return Err(Malformed::Kind(quoted(&found, MAX_QUOTED_CHARS)));
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

/// The content of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The verdict on an object that was decoded.
    Verdict(&'a Verdict),
    /// The object could not be decoded, and why.
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
    warnings: &'a [String],
}

/// The part of meta/v1 `Status` that a user sees of a denial.
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

/// Encodes the response to the review with this uid.
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
        Answer::Unreadable(reason) => {
            response.status = Status::bad_request(format!("the pod cannot be read: {reason}"));
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
