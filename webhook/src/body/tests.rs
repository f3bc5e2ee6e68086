use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use axum::body::{Body, Bytes};
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use portmapping_runtime::conns::Peer;

use super::{BodyError, Budget, FULL_PEERS, MAX_BODIES, PEER_BYTES};

/// A body in pieces, as the network delivers it; its length is not announced.
fn pieces(pieces: &[&'static str]) -> Body {
    let frames = pieces
        .iter()
        .map(|piece| Ok(Frame::data(Bytes::from(*piece))));
    let frames = frames.collect::<Vec<Result<_, Infallible>>>();
    Body::new(StreamBody::new(stream::iter(frames)))
}

/// A body of which nothing arrives; its length is not announced, so it claims the longest.
fn stalled() -> Body {
    let nothing = stream::pending::<Result<Frame<Bytes>, Infallible>>();
    Body::new(StreamBody::new(nothing))
}

fn peer(last: u8) -> Peer {
    IpAddr::from([10, 0, 0, last]).into()
}

async fn read(budget: &Budget, body: impl Into<Body>) -> Result<Vec<u8>, BodyError> {
    let received = budget.read(peer(1), body.into()).await;
    received.map(|(bytes, _claims)| bytes)
}

#[tokio::test]
async fn joins_the_pieces() {
    let budget = Budget::new(9);
    assert_eq!(read(&budget, Body::empty()).await.unwrap(), b"");
    assert_eq!(read(&budget, "whole").await.unwrap(), b"whole");
    let body = pieces(&["a", "", "bc", "d"]);
    assert_eq!(read(&budget, body).await.unwrap(), b"abcd");
}

#[tokio::test]
async fn refuses_a_body_over_the_limit_announced_or_not() {
    let budget = Budget::new(3);
    let too_long = Err(BodyError::TooLong(3));
    assert_eq!(read(&budget, "four").await, too_long);
    assert_eq!(read(&budget, pieces(&["ab", "cd"])).await, too_long);
    assert_eq!(read(&budget, "abc").await.unwrap(), b"abc");
}

#[tokio::test]
async fn bodies_of_one_peer_wait_for_its_budget_and_give_it_back() {
    let budget = Budget::new(PEER_BYTES);
    let half = || Body::from(vec![0; PEER_BYTES as usize / 2]);
    let first = budget.read(peer(1), half()).await.unwrap();
    let _second = budget.read(peer(1), half()).await.unwrap();
    let mut third = pin!(budget.read(peer(1), half()));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(third.as_mut().poll(&mut cx).is_pending(), "no budget yet");
    drop(first);
    assert!(matches!(third.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
}

#[tokio::test]
async fn a_peer_with_too_many_stalled_bodies_is_refused_and_others_are_served() {
    let budget = Budget::new(PEER_BYTES);
    let mut cx = Context::from_waker(Waker::noop());
    let mut waiting = Vec::new();
    for _body in 0..MAX_BODIES {
        let mut body = Box::pin(budget.read(peer(66), stalled()));
        assert!(body.as_mut().poll(&mut cx).is_pending());
        waiting.push(body);
    }
    let refused = budget.read(peer(66), stalled()).await;
    assert_eq!(refused.map(drop), Err(BodyError::TooMany));
    assert_eq!(read(&budget, "a review").await.unwrap(), b"a review");
    drop(waiting);
    assert_eq!(
        budget.all.available_permits(),
        PEER_BYTES as usize * FULL_PEERS
    );
    assert_eq!(read(&budget, "again").await.unwrap(), b"again");
    assert_eq!(
        budget.peers.lock().len(),
        1,
        "peers without a body are forgotten"
    );
}

#[tokio::test]
async fn all_peers_together_stay_within_the_budget_over_all() {
    let budget = Budget::new(PEER_BYTES);
    let mut cx = Context::from_waker(Waker::noop());
    let mut filling = Vec::new();
    for last in 1..=u8::try_from(FULL_PEERS).unwrap() {
        let mut body = Box::pin(budget.read(peer(last), stalled()));
        assert!(body.as_mut().poll(&mut cx).is_pending());
        filling.push(body);
    }
    let mut next = pin!(budget.read(peer(99), Body::from("a review")));
    assert!(next.as_mut().poll(&mut cx).is_pending(), "no budget left");
    filling.pop();
    assert!(matches!(next.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
}
