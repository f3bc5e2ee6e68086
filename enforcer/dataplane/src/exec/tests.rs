use super::*;

fn tools(deadline: Duration) -> Tools {
    Tools {
        deadline,
        ..Tools::default()
    }
}

#[test]
fn transfers_more_than_a_pipe_holds_in_both_directions() {
    let input = vec![b'x'; 1 << 20];
    let finished = Tools::default().run("cat", &[] as &[&str], &input).unwrap();
    assert!(finished.status.success());
    assert_eq!(finished.stdout.len(), input.len());
}

#[test]
fn reports_exit_status_and_output() {
    let args = ["-c", "echo out; echo err >&2; exit 3"];
    let finished = Tools::default().run("sh", &args, b"").unwrap();
    assert_eq!(finished.status.code(), Some(3));
    assert_eq!(finished.stdout, b"out\n");
    assert_eq!(finished.stderr, "err");
}

#[test]
fn program_that_reads_nothing_is_no_error() {
    let finished = Tools::default()
        .run("true", &[] as &[&str], &vec![0; 1 << 20])
        .unwrap();
    assert!(finished.status.success());
}

#[test]
fn kills_a_program_that_does_not_end() {
    let start = Instant::now();
    let args = ["-c", "echo thinking >&2; exec sleep 600"];
    let error = tools(Duration::from_millis(300))
        .run("sh", &args, b"")
        .unwrap_err();
    assert!(start.elapsed() < Duration::from_mins(1));
    assert!(matches!(error, ExecError::Deadline { .. }));
    assert!(
        error.to_string().contains("within 0.3 s and was killed"),
        "{error}"
    );
}

#[test]
fn does_not_wait_for_a_grandchild_that_keeps_the_pipes() {
    let start = Instant::now();
    let finished = Tools::default()
        .run("sh", &["-c", "sleep 8 & echo done"], b"")
        .unwrap();
    assert_eq!(finished.stdout, b"done\n");
    assert!(start.elapsed() < Duration::from_secs(7));
}

#[test]
fn names_a_program_that_is_not_installed() {
    let error = Tools::default()
        .run("no-such-program", &[] as &[&str], b"")
        .unwrap_err();
    assert!(matches!(
        error,
        ExecError::Missing {
            program: "no-such-program"
        }
    ));
}

#[test]
fn error_output_is_truncated_at_a_limit() {
    let args = ["-c", "yes complaint | head -c 100000 >&2; exit 1"];
    let finished = Tools::default().run("sh", &args, b"").unwrap();
    assert!(finished.stderr.len() <= STDERR_BYTES);
}
