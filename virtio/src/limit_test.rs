use super::Throttle;

#[test]
fn allows_the_burst_and_no_more_until_the_period_ends() {
    let limit = Throttle::new(3, 10);
    let allowed: Vec<bool> = (0..5).map(|_| limit.allow_at(4)).collect();
    assert_eq!(allowed, [true, true, true, false, false]);
    assert!(!limit.allow_at(9));
    assert!(limit.allow_at(10));
}

#[test]
fn a_period_of_nothing_is_a_second() {
    let limit = Throttle::new(1, 0);
    assert!(limit.allow_at(0));
    assert!(!limit.allow_at(0));
    assert!(limit.allow_at(1));
}

#[test]
fn a_burst_of_nothing_allows_nothing() {
    assert!(!Throttle::new(0, 1).allow());
}
