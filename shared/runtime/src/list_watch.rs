//! A list of objects and the watch that follows it.
//!
//! ```text
//! streamed list, consistent --(not supported)--> cached list, not older than what was seen
//!          |                                         |  (the server is behind: a consistent one)
//!          v                                         v
//!        watch <------- planned end, no list due ----+
//!          |
//!          +--> any other end, or a list is due: a list
//! ```
//!
//! After etcd was restored from a backup, the API server's versions are older than before. A watch from
//! a version that it has not reached is silent until it has. So only a watch that ended as planned is
//! continued. A list that is older than what was seen is believed only if it is consistent.

mod backoff;
mod events;
mod items;

use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

use futures::AsyncBufRead;
use kube::api::{Api, ListParams, VersionMatch, WatchEvent, WatchParams};
use kube::core::Request;
use kube::core::request::Error as BuildError;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use self::backoff::WatchBackoff;
use self::events::Events;
use self::items::{Items, ItemsError};
use crate::deadline::chain;
use crate::{CallError, within};

/// Longest wait for the start of a response, and for the next object of a list.
const LIST_LIMIT: Duration = Duration::from_secs(30);
/// A watch is planned to last this long, in seconds. Drawn at random: watches that began together after
/// an outage do not end together.
const WATCH_SECONDS: std::ops::RangeInclusive<u32> = 240..=290;
/// Longest silence of a watch. The API server sends a bookmark about every minute. One that is alive only for TCP (a
/// frozen process, a proxy before a dead server) is noticed by nothing else.
const WATCH_LIMIT: Duration = Duration::from_secs(150);
/// A list is due this long after the last one, for faults that no watch reports.
const PERIOD: Duration = Duration::from_mins(15);
/// The period is up to this share longer or shorter.
const JITTER: f64 = 0.2;
/// Annotation of the bookmark that ends a streamed list.
const LIST_END: &str = "k8s.io/initial-events-end";
/// The version with which a list is consistent: it is not older than the request.
const CONSISTENT: &str = "";

/// What a list or a watch brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<K> {
    /// A list begins. One that began before and is not complete counts for nothing.
    ListStarted,
    /// An object of the list.
    Listed(K),
    /// The list is complete: an object that is not in it does not exist.
    ListComplete,
    /// An object was created or changed.
    Applied(K),
    /// An object was deleted.
    Deleted(K),
}

/// Why a list or a watch ended.
#[derive(Debug, thiserror::Error)]
enum ListWatchError {
    #[error("the list cannot be read")]
    List(#[source] CallError<kube::Error>),
    #[error("the list cannot be read")]
    Items(#[source] CallError<ItemsError>),
    #[error("the watch failed")]
    Watch(#[source] CallError<kube::Error>),
    #[error("the watch failed")]
    Events(#[source] CallError<ItemsError>),
    #[error("the API server ended the {0} early")]
    Ended(&'static str),
}

impl ListWatchError {
    /// The HTTP status with which the API server refused.
    fn code(&self) -> Option<u16> {
        match self {
            Self::List(CallError::Failed { source, .. })
            | Self::Watch(CallError::Failed { source, .. }) => match source {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Why a single list failed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The API server refused it, or was not reached.
    #[error("the list is refused")]
    Request(#[source] kube::Error),
    /// Its objects.
    #[error("the list cannot be read")]
    Items(#[source] ItemsError),
}

/// Lists the objects that this field selector matches, once and consistently. Reads them as a
/// [`ListWatch`] does, and needs no right to watch.
pub async fn list<K>(client: &Client, fields: &str) -> Result<Vec<K>, ListError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let request = Request::new(K::url_path(&(), None)).list(&ListParams::default().fields(fields));
    let request = request.map_err(|error| ListError::Request(kube::Error::BuildRequest(error)))?;
    let body = client.request_stream(request).await;
    let mut items = Items::new(Box::pin(body.map_err(ListError::Request)?));
    let mut all = Vec::new();
    while let Some(item) = items.next().await.map_err(ListError::Items)? {
        all.push(item);
    }
    // none where the response was cut off
    items.version().map_err(ListError::Items)?;
    Ok(all)
}

/// Lists objects and watches them. A failure is logged and tried again with back-off.
pub struct ListWatch<K> {
    client: Client,
    api: Api<K>,
    what: &'static str,
    fields: String,
    /// The newest version that was seen; empty before the first.
    version: String,
    list_due: Instant,
    state: State,
    backoff: WatchBackoff,
}

/// A response that is still arriving.
type Body = Pin<Box<dyn AsyncBufRead + Send>>;
type Unsent = http::Request<Vec<u8>>;

enum State {
    /// A list is due.
    Outdated,
    Listing(Items<Body>),
    /// The objects are known; a watch continues from `version`.
    Listed,
    Watching(Watch),
}

struct Watch {
    events: Events<Body>,
    /// The list is streamed and not complete.
    listing: bool,
    planned_end: Instant,
}

impl<K> ListWatch<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    /// Returns a list and watch of the objects that this field selector matches. `what` names them
    /// in logs. The client's read time limit must be longer than a watch is planned to last.
    #[must_use]
    pub fn new(client: Client, api: Api<K>, fields: &str, what: &'static str) -> Self {
        Self {
            client,
            api,
            what,
            fields: fields.to_owned(),
            version: String::new(),
            list_due: Instant::now(),
            state: State::Outdated,
            backoff: WatchBackoff::default(),
        }
    }

    /// Waits for the next event.
    pub async fn next(&mut self) -> Event<K> {
        loop {
            match self.step().await {
                Ok(Some(event)) => {
                    // a list that breaks again and again is no success, nor one whose watch is then refused
                    if matches!(event, Event::Applied(_) | Event::Deleted(_)) {
                        self.backoff.reset();
                    }
                    return event;
                }
                Ok(None) => {}
                Err(error) => {
                    let wait = self
                        .backoff
                        .after(error.code(), Instant::now(), rand::random());
                    let (what, error) = (self.what, chain(&error));
                    tracing::warn!(what, error, ?wait, "a watch failed; listing again");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Goes on from the current state. After an error a list is due.
    async fn step(&mut self) -> Result<Option<Event<K>>, ListWatchError> {
        match std::mem::replace(&mut self.state, State::Outdated) {
            State::Outdated => {
                self.state = self.start_list().await?;
                Ok(Some(Event::ListStarted))
            }
            State::Listing(mut items) => {
                let item = within(LIST_LIMIT, "read the list", items.next()).await;
                let item = item.map_err(ListWatchError::Items)?;
                if let Some(item) = item {
                    self.state = State::Listing(items);
                    return Ok(Some(Event::Listed(item)));
                }
                self.version = items.version().map_err(|source| {
                    let what = "read the list";
                    ListWatchError::Items(CallError::Failed { what, source })
                })?;
                self.state = State::Listed;
                Ok(Some(self.complete_list()))
            }
            State::Listed => {
                let version = self.version.clone();
                let watch = self.open(WatchParams::default(), &version).await?;
                self.state = State::Watching(watch);
                Ok(None)
            }
            State::Watching(watch) => self.watch_event(watch).await,
        }
    }

    async fn start_list(&mut self) -> Result<State, ListWatchError> {
        let streamed = WatchParams::default().initial_events();
        match self.open(streamed, CONSISTENT).await {
            // 422 while the feature gate WatchList is off, as it may be before Kubernetes 1.34
            Err(error) if matches!(error.code(), Some(400 | 422)) => {}
            opened => return opened.map(State::Watching),
        }
        let all = ListParams::default().fields(&self.fields);
        let cached = if self.version.is_empty() {
            all.clone().match_any()
        } else {
            let seen = all.clone().at(&self.version);
            seen.matching(VersionMatch::NotOlderThan)
        };
        let mut found = self.get(&cached).await;
        // the server has not reached the version within its own time limit of 3 s
        if matches!(&found, Err(error) if error.code() == Some(504)) {
            let (what, seen) = (self.what, &self.version);
            tracing::info!(what, seen, "the API server's cache is behind; reading etcd");
            found = self.get(&all).await;
        }
        found.map(State::Listing)
    }

    async fn get(&mut self, params: &ListParams) -> Result<Items<Body>, ListWatchError> {
        let request = Request::new(self.api.resource_url()).list(params);
        let body = within(LIST_LIMIT, "list", self.request(request)).await;
        body.map(Items::new).map_err(ListWatchError::List)
    }

    /// Sends a request, and returns its response as it arrives.
    async fn request(&mut self, request: Result<Unsent, BuildError>) -> kube::Result<Body> {
        let request = request.map_err(kube::Error::BuildRequest)?;
        let response = self.client.request_stream(request).await?;
        Ok(Box::pin(response))
    }

    async fn open(&mut self, params: WatchParams, from: &str) -> Result<Watch, ListWatchError> {
        let seconds = rand::random_range(WATCH_SECONDS);
        let params = params.fields(&self.fields).timeout(seconds);
        let planned_end = Instant::now() + Duration::from_secs(seconds.into());
        let listing = params.send_initial_events;
        let request = Request::new(self.api.resource_url()).watch(&params, from);
        let body = within(LIST_LIMIT, "watch", self.request(request)).await;
        Ok(Watch {
            events: Events::new(body.map_err(ListWatchError::Watch)?),
            listing,
            planned_end,
        })
    }

    async fn watch_event(&mut self, mut watch: Watch) -> Result<Option<Event<K>>, ListWatchError> {
        const WHAT: &str = "watch";
        let limit = if watch.listing {
            LIST_LIMIT
        } else {
            WATCH_LIMIT
        };
        let event = within(limit, WHAT, watch.events.next()).await;
        let Some(event) = event.map_err(ListWatchError::Events)? else {
            return self.watch_ended(&watch).map(|()| None);
        };
        let event = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) if watch.listing => {
                Some(Event::Listed(object))
            }
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.saw(&object);
                Some(Event::Applied(object))
            }
            WatchEvent::Deleted(object) => {
                self.saw(&object);
                Some(Event::Deleted(object))
            }
            WatchEvent::Bookmark(bookmark) => {
                self.version = bookmark.metadata.resource_version;
                let end = bookmark.metadata.annotations.contains_key(LIST_END);
                if end && std::mem::take(&mut watch.listing) {
                    Some(self.complete_list())
                } else {
                    None
                }
            }
            WatchEvent::Error(status) => {
                let source = kube::Error::Api(status);
                return Err(ListWatchError::Watch(CallError::Failed {
                    what: WHAT,
                    source,
                }));
            }
        };
        self.state = State::Watching(watch);
        Ok(event)
    }

    fn watch_ended(&mut self, watch: &Watch) -> Result<(), ListWatchError> {
        let now = Instant::now();
        if watch.listing {
            return Err(ListWatchError::Ended("streamed list"));
        }
        if now < watch.planned_end {
            return Err(ListWatchError::Ended("watch"));
        }
        if now < self.list_due {
            self.state = State::Listed;
        }
        Ok(())
    }

    fn complete_list(&mut self) -> Event<K> {
        let period = PERIOD.mul_f64(1.0 + rand::random_range(-JITTER..JITTER));
        self.list_due = Instant::now() + period;
        Event::ListComplete
    }

    fn saw(&mut self, object: &K) {
        if let Some(version) = &object.meta().resource_version {
            self.version.clone_from(version);
        }
    }
}

#[cfg(test)]
mod tests;
