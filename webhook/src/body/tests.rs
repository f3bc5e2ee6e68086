use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use axum::body::{Body, Bytes};
use hyper::body::Frame;

use portmapping_runtime::conns::Peer;

use super::{BodyError, Budget, Collected, MAX_BODIES, SHARE_BYTES, SHARES};

/// A body of pieces, as the network delivers it; its length is not announced.
fn pieces(pieces: Vec<Bytes>) -> Body {
    let frames = pieces
        .into_iter()
        .map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    Body::new(http_body_util::StreamBody::new(futures::stream::iter(
        frames.collect::<Vec<_>>(),
    )))
}

async fn collect(
    body: impl Into<Body>,
    limit: usize,
    budget: &Budget,
) -> Result<Collected, BodyError> {
    assert_eq!(budget.limit, limit);
    super::collect(body.into(), Peer::default(), budget).await
}

fn peer(last: u8) -> Peer {
    IpAddr::from([10, 0, 0, last]).into()
}

#[tokio::test]
async fn puts_pieces_together() {
    let budget = Budget::new(9);
    let empty = collect(Body::empty(), 9, &budget).await.unwrap();
    assert_eq!(empty.bytes(), b"");
    let one = collect("whole", 9, &budget).await.unwrap();
    assert_eq!(one.bytes(), b"whole");
    let body = pieces(vec!["a".into(), "".into(), "bc".into(), "d".into()]);
    assert_eq!(collect(body, 9, &budget).await.unwrap().bytes(), b"abcd");
}

#[tokio::test]
async fn refuses_what_is_too_long_announced_or_not() {
    let budget = Budget::new(3);
    let too_long = Err(BodyError::TooLong(3));
    assert_eq!(collect("four", 3, &budget).await.map(drop), too_long);
    let body = pieces(vec!["ab".into(), "cd".into()]);
    assert_eq!(collect(body, 3, &budget).await.map(drop), too_long);
    assert_eq!(collect("abc", 3, &budget).await.unwrap().bytes(), b"abc");
}

#[tokio::test]
async fn the_bodies_of_a_peer_share_its_room_and_give_it_back() {
    let budget = Budget::new(SHARE_BYTES);
    let half = || Body::from(vec![0; SHARE_BYTES / 2]);
    let first = collect(half(), SHARE_BYTES, &budget).await.unwrap();
    let second = collect(half(), SHARE_BYTES, &budget).await.unwrap();
    let mut third = pin!(collect(half(), SHARE_BYTES, &budget));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(third.as_mut().poll(&mut cx).is_pending(), "no room yet");
    drop(first);
    assert!(matches!(third.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
    drop(second);
    assert_eq!(budget.peers.lock().len(), 0, "nobody is remembered");
}

#[tokio::test]
async fn a_peer_that_fills_its_room_leaves_the_others_theirs() {
    let budget = Budget::new(SHARE_BYTES);
    let mut cx = Context::from_waker(Waker::noop());
    // a body whose length is not announced may come to the limit
    let endless = || {
        Body::new(http_body_util::StreamBody::new(futures::stream::pending::<
            Result<Frame<Bytes>, Infallible>,
        >()))
    };
    let mut waiting = Vec::new();
    for _body in 0..MAX_BODIES {
        let mut body = Box::pin(super::collect(endless(), peer(66), &budget));
        assert!(body.as_mut().poll(&mut cx).is_pending());
        waiting.push(body);
    }
    let crowded = super::collect(endless(), peer(66), &budget).await;
    assert_eq!(crowded.map(drop), Err(BodyError::Crowded));
    let other = super::collect(Body::from("a review"), peer(1), &budget).await;
    assert_eq!(other.unwrap().bytes(), b"a review");
    drop(waiting);
    assert_eq!(budget.peers.lock().len(), 0);
    assert_eq!(budget.all.available_permits(), SHARE_BYTES * SHARES);
}
