use std::fs;
use std::path::Path;

/// Runs a check over every file of its corpus, which contains what the fuzzer found before.
fn over_corpus(name: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../corpus")
        .join(name);
    let mut seen = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        println!("{}", path.display());
        check(&fs::read(path).unwrap());
        seen += 1;
    }
    assert!(seen >= 5, "{name}: {seen} files");
}

#[test]
fn annotation() {
    over_corpus("annotation", super::annotation);
}

#[test]
fn review() {
    over_corpus("review", super::review);
}

#[test]
fn mark() {
    over_corpus("mark", super::mark);
}

#[test]
fn http() {
    over_corpus("http", super::http);
}

#[test]
fn cni() {
    over_corpus("cni", super::cni);
}
