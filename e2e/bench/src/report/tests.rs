use serde_json::json;

use super::*;

#[test]
fn a_bar_on_the_ratio_is_judged_by_the_ratio_of_the_rounds() {
    let row = Row::new("connect", "us", 20.0).against("routed", 18.0, 1.16);
    assert!(row.clone().bar(Bar::AtMostRatio(1.16)).ok());
    assert!(!row.bar(Bar::AtMostRatio(1.15)).ok());
}

#[test]
fn a_bar_on_the_figure_is_judged_without_a_peer() {
    let row = Row::new("add", "ms", 8.0);
    assert!(row.clone().bar(Bar::AtMost(8.0)).ok());
    assert!(!row.bar(Bar::AtMost(7.9)).ok());
}

#[test]
fn a_row_that_cannot_be_judged_misses_its_bar() {
    assert!(!Row::new("a", "ms", f64::NAN).bar(Bar::AtMost(1.0)).ok());
    assert!(!Row::new("a", "ms", 1.0).bar(Bar::AtMostRatio(1.0)).ok());
    assert!(Row::new("a", "ms", f64::NAN).ok());
}

#[test]
fn rows_are_written_with_every_key() {
    let folder = std::env::temp_dir().join(format!("bench-report-{}", std::process::id()));
    let mut report = Report::default();
    report.push(Row::new("hold", "MB", 39.5));
    report.push(
        Row::new("connect", "us", 20.0)
            .against("routed", 16.0, 1.25)
            .bar(Bar::AtMostRatio(1.15)),
    );
    let error = report
        .finish(Some(&folder))
        .expect_err("a bar is missed")
        .to_string();
    assert_eq!(error, "1 of 1 bars missed: connect");
    let text = fs::read_to_string(&folder).expect("the file");
    fs::remove_file(&folder).expect("remove the file");
    let rows: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        rows,
        json!([
            {"name": "hold", "unit": "MB", "ours": 39.5, "peer": null, "peer_name": null,
             "ratio": null, "bar": null, "ok": true},
            {"name": "connect", "unit": "us", "ours": 20.0, "peer": 16.0, "peer_name": "routed",
             "ratio": 1.25, "bar": "<= 1.15 x", "ok": false},
        ])
    );
}

#[test]
fn the_table_names_the_peer_and_the_verdict() {
    let mut report = Report::default();
    report.push(
        Row::new("add", "ms", 0.0051)
            .against("portmap", 3976.4, 0.000_001)
            .bar(Bar::AtMost(0.1)),
    );
    report.push(Row::new("longer name", "us", 12.34));
    assert_eq!(
        report.to_string(),
        "what              ours  peer               ratio  bar\n\
         add          0.0051 ms  3976 ms (portmap)  0.0000 x  <= 0.1 ms  ok\n\
         longer name    12.3 us\n"
            .replace("  ratio  bar", "     ratio  bar")
    );
}

#[test]
fn a_run_that_meets_its_bars_succeeds() {
    let mut report = Report::default();
    report.push(Row::new("add", "ms", 1.0).bar(Bar::AtMost(1.0)));
    report.finish(None).expect("all bars reached");
}
