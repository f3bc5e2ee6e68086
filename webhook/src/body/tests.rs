use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use axum::body::{Body, Bytes, HttpBody};
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::{Frame, SizeHint};
use portmapping_runtime::conns::Peer;
use tokio::task::unconstrained;

use super::{Bodies, BodyError, FULL_PEERS, MAX_BODIES, SMALL};
use crate::unread::UnreadSince;

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

/// The longest body here, in bytes.
const LIMIT: u32 = 4 * 1024 * 1024;

fn peer(last: u8) -> Peer {
    IpAddr::from([10, 0, 0, last]).into()
}

async fn read(bodies: &Bodies, body: impl Into<Body>) -> Result<Vec<u8>, BodyError> {
    let received = bodies
        .read(peer(1), UnreadSince::default(), body.into())
        .await;
    received.map(|(bytes, _claims)| bytes)
}

#[tokio::test]
async fn joins_the_pieces() {
    let bodies = Bodies::new(9);
    assert_eq!(read(&bodies, Body::empty()).await.unwrap(), b"");
    assert_eq!(read(&bodies, "whole").await.unwrap(), b"whole");
    let body = pieces(&["a", "", "bc", "d"]);
    assert_eq!(read(&bodies, body).await.unwrap(), b"abcd");
}

#[tokio::test]
async fn refuses_a_body_over_the_limit_announced_or_not() {
    let bodies = Bodies::new(3);
    let too_long = Err(BodyError::TooLong(3));
    assert_eq!(read(&bodies, "four").await, too_long);
    assert_eq!(read(&bodies, pieces(&["ab", "cd"])).await, too_long);
    assert_eq!(read(&bodies, "abc").await.unwrap(), b"abc");
}

#[tokio::test]
async fn bodies_of_one_peer_wait_for_its_budget_and_give_it_back() {
    let bodies = Bodies::new(LIMIT);
    let half = || Body::from(vec![0; LIMIT as usize / 2]);
    let first = bodies
        .read(peer(1), UnreadSince::default(), half())
        .await
        .unwrap();
    let _second = bodies
        .read(peer(1), UnreadSince::default(), half())
        .await
        .unwrap();
    let mut third = pin!(bodies.read(peer(1), UnreadSince::default(), half()));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(third.as_mut().poll(&mut cx).is_pending(), "no budget yet");
    drop(first);
    assert!(matches!(third.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
}

#[tokio::test]
async fn a_peer_with_too_many_stalled_bodies_loses_its_own_and_others_are_served() {
    let bodies = Bodies::new(LIMIT);
    let mut cx = Context::from_waker(Waker::noop());
    let first = read(&bodies, stalled_small());
    let mut first = pin!(first);
    assert!(first.as_mut().poll(&mut cx).is_pending());
    let mut waiting = Vec::new();
    for number in 0..MAX_BODIES {
        // without tokio's limit on what one test may poll
        let (peer, stalled) = (
            peer(66),
            if number % 2 == 0 {
                stalled()
            } else {
                stalled_small()
            },
        );
        let mut body = Box::pin(unconstrained(bodies.read(
            peer,
            UnreadSince::default(),
            stalled,
        )));
        assert!(body.as_mut().poll(&mut cx).is_pending());
        waiting.push(body);
    }
    let mut lost = 0;
    for body in &mut waiting {
        if let Poll::Ready(read) = body.as_mut().poll(&mut cx) {
            assert_eq!(read.map(drop), Err(BodyError::TooMany));
            lost += 1;
        }
    }
    assert_eq!(lost, 1, "the other peer's body and these are one too many");
    assert!(
        first.as_mut().poll(&mut cx).is_pending(),
        "not the other peer's"
    );
    let served = read(&bodies, "a review").await;
    assert_eq!(served.unwrap(), b"a review");
    drop(waiting);
    let all = bodies.budget.all.available_permits();
    assert_eq!(all, LIMIT as usize * FULL_PEERS);
    assert_eq!(read(&bodies, "again").await.unwrap(), b"again");
    let _long = bodies
        .read(peer(1), UnreadSince::default(), long())
        .await
        .unwrap();
    let peers = bodies.budget.peers.lock().len();
    assert_eq!(peers, 1, "peers without a long body are forgotten");
}

#[tokio::test]
async fn small_bodies_do_not_wait_for_those_that_stall() {
    let bodies = Bodies::new(LIMIT);
    let mut cx = Context::from_waker(Waker::noop());
    let mut stalled_ones = Vec::new();
    for last in 1..=u8::try_from(FULL_PEERS).unwrap() {
        for _body in 0..50 {
            let mut body = Box::pin(unconstrained(bodies.read(
                peer(last),
                UnreadSince::default(),
                stalled(),
            )));
            assert!(body.as_mut().poll(&mut cx).is_pending());
            let mut small = Box::pin(unconstrained(bodies.read(
                peer(last),
                UnreadSince::default(),
                stalled_small(),
            )));
            assert!(small.as_mut().poll(&mut cx).is_pending());
            stalled_ones.extend([body, small]);
        }
    }
    assert_eq!(bodies.budget.all.available_permits(), 0);
    // peer 1 is one of those that stall
    for last in [1, 99] {
        let mut small = pin!(unconstrained(bodies.read(
            peer(last),
            UnreadSince::default(),
            "a review".into()
        )));
        assert!(matches!(small.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
    }
}

#[tokio::test]
async fn all_peers_together_stay_within_the_budget_over_all() {
    let bodies = Bodies::new(LIMIT);
    let mut cx = Context::from_waker(Waker::noop());
    let mut filling = Vec::new();
    for last in 1..=u8::try_from(FULL_PEERS).unwrap() {
        let mut body = Box::pin(bodies.read(peer(last), UnreadSince::default(), stalled()));
        assert!(body.as_mut().poll(&mut cx).is_pending());
        filling.push(body);
    }
    let mut next = pin!(bodies.read(peer(99), UnreadSince::default(), long()));
    assert!(next.as_mut().poll(&mut cx).is_pending(), "no budget left");
    filling.pop();
    assert!(matches!(next.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
}

/// A body that needs a part of the budget, and is there at once.
fn long() -> Body {
    Body::from(vec![0; SMALL as usize + 1])
}

/// A small body of which nothing arrives; its length is announced.
fn stalled_small() -> Body {
    struct Stalled;
    impl HttpBody for Stalled {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(SMALL.into())
        }
    }
    Body::new(Stalled)
}
