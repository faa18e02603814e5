use super::*;

fn said(bytes: &[u8]) -> Vec<Said> {
    let mut lines = Lines::default();
    bytes.iter().filter_map(|byte| lines.push(*byte)).collect()
}

#[test]
fn the_guest_says_that_it_is_up_and_what_it_does() {
    let status = |text: &str| Said::Status(text.to_owned());
    assert_eq!(
        said(b"STATUS=starting\r\nX_OTHER=1\nREADY=1\nSTATUS=up \x1b[31m\n"),
        [status("starting"), Said::Ready, status("up [31m")]
    );
    assert_eq!(said(b"READY=1"), []);
    assert_eq!(said(b"READY=11\n READY=1\nREADY=0\n\n"), []);
}

#[test]
fn a_line_without_end_takes_no_memory_and_hides_nothing_after_it() {
    let mut lines = Lines::default();
    for _ in 0..1_000_000 {
        assert_eq!(lines.push(b'R'), None);
    }
    assert!(lines.line.capacity() <= 2 * LONGEST);
    assert_eq!(lines.push(b'\n'), None);
    assert_eq!(b"READY=1\n".iter().filter_map(|byte| lines.push(*byte)).collect::<Vec<_>>(), [Said::Ready]);
}
