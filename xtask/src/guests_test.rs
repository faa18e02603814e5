//! What summaries come to, whole ones and those of a machine that went away.

use super::*;

const PASSED: &str = r#"{"name":"a","outcome":"begun","seconds":0.0,"why":""}
{"name":"a","outcome":"passed","seconds":1.0,"why":""}
"#;
const CUT: &str = r#"{"name":"b","outcome":"begun","seconds":0.0,"why":""}
"#;
const FAILED: &str = r#"{"name":"c","outcome":"begun","seconds":0.0,"why":""}
{"name":"c","outcome":"failed","seconds":2.0,"why":"so"}
"#;

fn counted(summary: &str, trouble: Option<&str>) -> Counts {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("summary");
    std::fs::write(&path, summary).unwrap();
    count(&path, trouble.map(str::to_owned)).unwrap()
}

#[test]
fn a_begun_case_is_neither_passed_nor_failed() {
    let counts = counted(&[PASSED, CUT].concat(), Some("gone"));
    assert_eq!((counts.passed, counts.failed), (1, vec!["guest cases, at b: gone".to_owned()]));
}

#[test]
fn a_failed_case_explains_the_programs_status_and_nothing_else_does() {
    assert_eq!(counted(FAILED, Some("exit status 1")).failed, ["c (2 s)"]);
    assert_eq!(counted(PASSED, Some("exit status 2")).failed, ["guest cases, at a: exit status 2"]);
    assert_eq!(counted("", Some("no rig")).failed, ["guest cases, at the start: no rig"]);
    assert_eq!(counted(&[FAILED, CUT].concat(), Some("gone")).failed.len(), 2);
}
