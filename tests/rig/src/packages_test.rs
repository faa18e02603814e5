use super::*;

#[test]
fn the_major_number_is_found_behind_an_epoch() {
    assert_eq!(major("1:10.0.2+ds-2+deb13u1~bpo12+1"), 10);
    assert_eq!(major("7.2.0 (Debian)"), 7);
    assert_eq!(major("unknown"), 0);
}

#[test]
fn sources_are_read_in_both_formats() {
    let old = "# deb http://no/ bookworm main\ndeb [signed-by=/k.gpg arch=amd64] http://mirror/debian bookworm main\n";
    let (uri, options) = one_line(old, "bookworm").unwrap();
    assert_eq!((uri.as_str(), options.as_str()), ("http://mirror/debian", "[signed-by=/k.gpg arch=amd64] "));
    let new =
        "Types: deb\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\nSigned-By: /k.gpg\n";
    assert_eq!(
        stanza(new, "bookworm").unwrap(),
        ("http://mirror/debian".into(), "[signed-by=/k.gpg] ".into())
    );
    assert_eq!(stanza(new, "trixie"), None);
    assert_eq!(one_line(new, "bookworm"), None);
}
