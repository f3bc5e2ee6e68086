use std::future::{pending, ready};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;

const WINDOW: usize = 128 * 1024;

fn unread() -> Unread {
    Unread::new(128 * 1024)
}

#[test]
fn a_body_waits_while_another_one_of_its_connection_is_read() {
    let connection = unread();
    let first = connection.begin();
    let second = connection.begin();
    let mut waits = pin!(second.wait(pending::<()>()));
    let context = &mut Context::from_waker(Waker::noop());
    assert_eq!(waits.as_mut().poll(context), Poll::Pending);
    // each of them has sent a window, and the first one is read now and then
    connection.received(WINDOW);
    for _piece in 0..10 {
        connection.received(WINDOW);
        assert_eq!(waits.as_mut().poll(context), Poll::Pending);
        first.taken(WINDOW);
    }
    // with one open body there is room for one window
    connection.received(WINDOW);
    drop(first);
    connection.received(1);
    assert_eq!(waits.as_mut().poll(context), Poll::Ready(None));
}

#[test]
fn a_body_that_sends_more_than_its_window_does_not_wait() {
    let connection = unread();
    let body = connection.begin();
    let mut waits = pin!(body.wait(pending::<()>()));
    let context = &mut Context::from_waker(Waker::noop());
    connection.received(WINDOW);
    assert_eq!(waits.as_mut().poll(context), Poll::Pending);
    connection.received(WINDOW);
    assert_eq!(waits.as_mut().poll(context), Poll::Ready(None));
    // where there is memory, it does not matter
    let mut at_once = pin!(body.wait(ready(())));
    assert_eq!(at_once.as_mut().poll(context), Poll::Ready(Some(())));
}

#[test]
fn a_request_that_ended_leaves_no_open_body() {
    let connection = unread();
    let request = connection.begin();
    drop((request.clone(), request));
    assert_eq!(connection.0.count.lock().open, 0);
}
