use super::*;

fn parse(line: &str) -> Result<Options, clap::Error> {
    Options::try_parse_from(std::iter::once("vhost-net").chain(line.split_whitespace()))
}

#[test]
fn lines_that_are_right() {
    for line in [
        "--socket-path /run/s --tap tap0",
        "--fd 3 --tap tap0 --mac 52:54:00:00:00:01 --num-queues 4 --cpus 0,1,2,3 --poll 0",
        "--fd 3 --tap-fd 4,5,6",
        "--print-capabilities",
        "--fd 3 --tap t --create-tap --no-sandbox --no-io-uring",
    ] {
        let options = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(options.repeated(), None, "{line}");
    }
    assert_eq!(parse("--fd 3 --tap-fd 4,5,6").unwrap().tap_fd, [4, 5, 6]);
}

#[test]
fn lines_that_are_wrong() {
    for line in [
        "",
        "--socket-path /run/s",
        "--socket-path /run/s --fd 3 --tap tap0",
        "--fd 3 --tap tap0 --tap-fd 4",
        "--fd -1 --tap tap0",
        "--fd 3 --tap tap0 --mac ff:ff:ff:ff:ff:ff",
        "--fd 3 --tap tap0 --num-queues 0",
        "--fd 3 --tap tap0 --num-queues 65",
        "--fd 3 --tap-fd 4 --num-queues 2",
        "--fd 3 --tap-fd 4 --create-tap",
        "--fd 3 --tap tap0 --poll 5001",
    ] {
        let code = parse(line).map(drop).map_err(|error| error.exit_code());
        assert_eq!(code, Err(2), "{line}");
    }
}

#[test]
fn a_descriptor_has_one_use() {
    assert_eq!(parse("--fd 3 --tap-fd 4,5,4").unwrap().repeated(), Some(4));
    assert_eq!(parse("--fd 3 --tap-fd 4,3").unwrap().repeated(), Some(3));
    assert_eq!(parse("--fd 3 --tap t --control-fd 3").unwrap().repeated(), Some(3));
    assert_eq!(parse("--fd 3 --tap t --control-fd 4").unwrap().kept(Some(9)), [9, 4]);
}
