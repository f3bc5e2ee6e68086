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

#[tokio::test]
async fn a_refusal_of_the_api_server_is_reported_in_its_own_words() {
    let status = kube::core::Status::failure("pods \"web\" is forbidden: no", "Forbidden");
    let call = async { Err::<(), _>(kube::Error::Api(Box::new(status))) };
    let error = within(Duration::from_secs(9), "PATCH pods/status", call)
        .await
        .unwrap_err();
    let text = "PATCH pods/status failed: pods \"web\" is forbidden: no";
    assert_eq!(chain(&error), text);
}
