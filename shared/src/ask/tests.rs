use super::*;

#[test]
fn quoted_text_is_short_and_on_one_line() {
    assert_eq!(quoted("a b", 3), "a b");
    assert_eq!(quoted("a\nb", 10), "a\\nb");
    assert_eq!(quoted("a\nb", 2), "a...");
    assert_eq!(quoted(&"\u{1F600}".repeat(300), 200).chars().count(), 203);
}
