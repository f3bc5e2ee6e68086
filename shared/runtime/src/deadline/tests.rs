use std::future::pending;
use std::io;
use std::time::Duration;

use super::{CallError, chain, within};

#[tokio::test]
async fn a_call_without_a_response_ends() {
    let call = pending::<Result<(), io::Error>>();
    let error = within(Duration::from_millis(1), "reading", call)
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::TimedOut { .. }));
    assert_eq!(chain(&error), "reading: no response within 1ms");
}

#[tokio::test]
async fn an_error_response_is_the_cause() {
    let call = async { Err::<(), _>(io::Error::other("no such thing")) };
    let error = within(Duration::from_secs(9), "reading", call)
        .await
        .unwrap_err();
    assert_eq!(chain(&error), "reading failed: no such thing");
    assert!(matches!(error, CallError::Failed { .. }));
}
