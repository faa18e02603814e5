//! What a guest writes to hvc1, against a second reading of the same bytes: whole lines at once, where the vmm goes byte by
//! byte. What reaches the host of a line is short and printable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strata_vmm::machine::{Lines, Said};

/// As the vmm documents it.
const LONGEST: usize = 256;

fuzz_target!(|bytes: &[u8]| {
    let mut lines = Lines::default();
    let said: Vec<Said> = bytes.iter().filter_map(|byte| lines.push(*byte)).collect();
    // What follows the last line's end is no line yet.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(&[][..], |end| &bytes[..end]);
    let expected: Vec<Said> = whole.split(|byte| *byte == b'\n').filter_map(read).collect();
    assert_eq!(said, expected);
});

fn read(line: &[u8]) -> Option<Said> {
    if line.len() > LONGEST {
        return None;
    }
    let line = if line.last() == Some(&b'\r') { &line[..line.len() - 1] } else { line };
    match line {
        b"READY=1" => Some(Said::Ready),
        [b'S', b'T', b'A', b'T', b'U', b'S', b'=', text @ ..] => {
            let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
            // A byte that is no UTF-8 becomes three.
            assert!(text.len() <= 3 * LONGEST && !text.contains(['\n', '\x1b', '\u{9b}']));
            Some(Said::Status(text))
        }
        _ => None,
    }
}
