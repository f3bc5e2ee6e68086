use futures::io::Cursor;
use serde_json::{Value, json};

use super::*;

/// What may confuse a reader that tells only brackets and strings apart.
fn list() -> (Value, Vec<Value>) {
    let items = vec![
        json!({ "metadata": { "name": "a", "finalizers": ["x", { "y": [] }] } }),
        json!({}),
        json!({ "text": "]} \" \\ {[ , \\\" é" }),
    ];
    let list = json!({
        "kind": "PodList",
        "metadata": { "resourceVersion": "7", "remainingItemCount": 0 },
        "items": items,
    });
    (list, items)
}

async fn read(text: &[u8]) -> Result<(Vec<Value>, String), ItemsError> {
    let mut items = Items::new(Cursor::new(text));
    let mut read = Vec::new();
    while let Some(item) = items.next().await? {
        read.push(item);
    }
    Ok((read, items.version()?))
}

#[tokio::test]
async fn a_list_is_read_item_by_item() {
    let (list, items) = list();
    for text in [list.to_string(), format!("{list:#}")] {
        let (read, version) = read(text.as_bytes()).await.unwrap();
        assert_eq!((read, version), (items.clone(), "7".to_owned()));
    }
    let empty = br#"{"items":[],"metadata":{"resourceVersion":"8"}}"#;
    assert_eq!(read(empty).await.unwrap(), (vec![], "8".to_owned()));
}

#[test]
fn items_are_the_same_wherever_the_response_is_cut() {
    let (list, items) = list();
    let text = list.to_string();
    for cut in 0..text.len() {
        let mut splitter = Splitter::default();
        let mut found = Vec::new();
        let (first, second) = text.as_bytes().split_at(cut);
        for mut piece in [first, second] {
            while !piece.is_empty() {
                let (read, item) = splitter.read(piece).unwrap();
                piece = &piece[read..];
                found.extend(item);
            }
        }
        let found = found.iter().map(|item| serde_json::from_slice(item));
        let found: Vec<Value> = found.collect::<Result<_, _>>().unwrap();
        assert_eq!(found, items, "cut at {cut}");
    }
}

#[tokio::test]
async fn a_list_that_was_cut_off_is_no_list() {
    let text = list().0.to_string();
    for end in 0..text.len() {
        assert!(read(&text.as_bytes()[..end]).await.is_err(), "cut at {end}");
    }
    assert!(read(br#"{"kind":"Status"}"#).await.is_err());
}

#[test]
fn an_endless_item_is_refused() {
    let mut splitter = Splitter::default();
    splitter.read(br#"{"items":[{"a":""#).unwrap();
    let piece = vec![b'x'; LONGEST];
    assert!(matches!(splitter.read(&piece), Err(ItemsError::TooLong)));
}

#[tokio::test]
async fn a_byte_that_is_no_utf8_is_replaced() {
    let text = b"{\"metadata\":{\"resourceVersion\":\"7\"},\"items\":[{\"a\xff\":1}]}";
    let (read, _version) = read(text).await.unwrap();
    assert_eq!(read, [json!({ "a\u{fffd}": 1 })]);
}
