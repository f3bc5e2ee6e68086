use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use axum::body::{Body, Bytes};
use hyper::body::Frame;

use super::{BUDGET_BYTES, BodyError, Budget, collect};

/// A body of pieces, as the network delivers it; its length is not announced.
fn pieces(pieces: Vec<Bytes>) -> Body {
    let frames = pieces
        .into_iter()
        .map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    Body::new(http_body_util::StreamBody::new(futures::stream::iter(
        frames.collect::<Vec<_>>(),
    )))
}

#[tokio::test]
async fn puts_pieces_together() {
    let budget = Budget::default();
    let empty = collect(Body::empty(), 9, &budget).await.unwrap();
    assert_eq!(empty.bytes(), b"");
    let one = collect(Body::from("whole"), 9, &budget).await.unwrap();
    assert_eq!(one.bytes(), b"whole");
    let body = pieces(vec!["a".into(), "".into(), "bc".into(), "d".into()]);
    assert_eq!(collect(body, 9, &budget).await.unwrap().bytes(), b"abcd");
}

#[tokio::test]
async fn refuses_what_is_too_long_announced_or_not() {
    let budget = Budget::default();
    let too_long = Err(BodyError::TooLong(3));
    assert_eq!(
        collect(Body::from("four"), 3, &budget).await.map(drop),
        too_long
    );
    let body = pieces(vec!["ab".into(), "cd".into()]);
    assert_eq!(collect(body, 3, &budget).await.map(drop), too_long);
    assert_eq!(
        collect(Body::from("abc"), 3, &budget)
            .await
            .unwrap()
            .bytes(),
        b"abc"
    );
}

#[tokio::test]
async fn bodies_share_one_budget_and_give_it_back() {
    let budget = Budget::default();
    let half = vec![0; BUDGET_BYTES / 2];
    let first = collect(Body::from(half.clone()), BUDGET_BYTES, &budget)
        .await
        .unwrap();
    let _second = collect(Body::from(half.clone()), BUDGET_BYTES, &budget)
        .await
        .unwrap();
    let mut third = pin!(collect(Body::from(half), BUDGET_BYTES, &budget));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(third.as_mut().poll(&mut cx).is_pending(), "no room yet");
    drop(first);
    assert!(matches!(third.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
}
