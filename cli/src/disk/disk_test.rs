use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: DiskCommand,
}

fn limit(words: &str) -> Result<LimitArgs, clap::Error> {
    let words = format!("strata limit web disk0 {words}");
    match Line::try_parse_from(words.split_whitespace())?.command {
        DiskCommand::Limit(args) => Ok(args),
        other => panic!("{other:?}"),
    }
}

const NOW: Rates = Rates { iops: 100, iops_burst: 50, bytes_per_second: 4096, bytes_burst: 409 };

#[test]
fn only_limits_that_are_given_change() {
    let change = |words| limit(words).unwrap().change(NOW).unwrap();
    assert_eq!(change(""), None);
    assert_eq!(change("--iops-burst 7"), Some(Rates { iops_burst: 7, ..NOW }));
    // A new rate has a new default burst.
    assert_eq!(change("--iops 200"), Some(Rates { iops: 200, iops_burst: 0, ..NOW }));
    assert_eq!(change("--iops 200 --iops-burst 9"), Some(Rates { iops: 200, iops_burst: 9, ..NOW }));
    let bytes = Rates { bytes_per_second: 2 << 20, bytes_burst: 0, ..NOW };
    assert_eq!(change("--bytes-per-second 2M"), Some(bytes));
    assert_eq!(change("--none"), Some(Rates::default()));
}

#[test]
fn what_makes_no_sense_is_refused() {
    assert!(limit("--none --iops 1").is_err());
    assert!(limit("--iops -1").is_err());
    assert!(limit("--bytes-burst 1MB").is_err());
    let error = limit("--iops-burst 5").unwrap().change(Rates::default()).unwrap_err();
    assert_eq!(error.to_string(), "--iops-burst is nothing without --iops; give that too");
    let error = limit("--iops 0 --iops-burst 5").unwrap().change(NOW).unwrap_err();
    assert_eq!(error.to_string(), "--iops-burst is nothing without --iops; give that too");
}

#[test]
fn limits_are_shown_with_their_bursts() {
    assert_eq!(Rates::default().text(), "requests: no limit\nbytes: no limit\n");
    assert_eq!(
        Rates { bytes_per_second: 100 << 20, bytes_burst: 10 << 20, ..NOW }.text(),
        "requests: 100 per second, bursts of 50\nbytes: 100.0 MiB per second, bursts of 10.0 MiB\n"
    );
}
