use super::*;

#[test]
fn text_and_back() {
    for text in ["52:54:00:12:34:56", "02:00:00:00:00:01", "fe:ff:ff:ff:ff:ff"] {
        assert_eq!(text.parse::<Mac>().unwrap().to_string(), text);
    }
}

#[test]
fn what_is_refused() {
    for text in [
        "",
        "52:54:00:12:34",
        "52:54:00:12:34:56:78",
        "5254.0012.3456",
        "52:54:0:12:34:56",
        "+2:54:00:12:34:56",
    ] {
        assert_eq!(text.parse::<Mac>(), Err(MacError::Form(text.to_owned())));
    }
    assert_eq!("00:00:00:00:00:00".parse::<Mac>(), Err(MacError::Zero));
    assert!(matches!("ff:ff:ff:ff:ff:ff".parse::<Mac>(), Err(MacError::Group(_))));
}

#[test]
fn a_tap_always_gives_the_same_card() {
    assert_eq!(Mac::for_tap("tap0"), Mac::for_tap("tap0"));
    assert_ne!(Mac::for_tap("tap0"), Mac::for_tap("tap1"));
    assert!(Mac::for_tap("tap0").to_string().parse::<Mac>().is_ok());
}
