use tempfile::TempDir;

use super::*;

fn place(folder: &TempDir, text: &str) -> PathBuf {
    let path = folder.path().join("token");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_request_carries_what_the_file_said_within_the_last_minute() {
    let folder = TempDir::new().unwrap();
    let path = place(&folder, "first\n");
    let token = Token::read(path.clone()).unwrap();
    let begun = token.known.lock().1;
    place(&folder, "second\n");
    assert_eq!(
        token.sign(Request::new(())).headers()[AUTHORIZATION],
        "Bearer first"
    );
    assert_eq!(token.at(begun + REREAD), "Bearer second");
    fs::remove_file(&path).unwrap();
    assert_eq!(token.at(begun + REREAD * 2), "Bearer second");
    place(&folder, "third");
    // a minute after the try that failed, not at once again
    assert_eq!(token.at(begun + REREAD * 2), "Bearer second");
    assert_eq!(token.at(begun + REREAD * 3), "Bearer third");
}

#[test]
fn what_is_no_token_is_said_without_its_text() {
    let folder = TempDir::new().unwrap();
    let missing = Token::read(folder.path().join("none")).unwrap_err();
    assert!(missing.to_string().ends_with("/none"), "{missing}");
    for text in ["", " \n", "se\u{7}cret"] {
        let error = Token::read(place(&folder, text)).unwrap_err();
        assert!(matches!(error, TokenError::Text { .. }), "{error:?}");
        assert!(!format!("{error:?} {error}").contains("cret"), "{error:?}");
    }
}

#[test]
fn it_is_never_printed() {
    let folder = TempDir::new().unwrap();
    let token = Token::read(place(&folder, "secret")).unwrap();
    let request = token.sign(Request::new(()));
    assert!(!format!("{token:?} {request:?}").contains("secret"));
}
