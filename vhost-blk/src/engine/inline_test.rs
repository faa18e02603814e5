use super::*;

#[test]
fn a_run_of_misses_makes_tries_rare_and_a_hit_makes_them_common() {
    let mut reads = Reads::default();
    for _ in 0..MISSES {
        assert!(reads.worth_trying());
        reads.tried(false);
    }
    let tries = (0..PROBE * 10).filter(|_| reads.worth_trying()).count();
    assert_eq!(tries, 10);
    reads.tried(true);
    assert!((0..100).all(|_| reads.worth_trying()));
}

#[test]
fn a_slow_write_sends_the_next_ones_by_the_ring() {
    let mut writes = Writes::default();
    for _ in 0..100 {
        assert!(writes.worth_trying());
        writes.took(Duration::from_micros(3));
    }
    writes.took(Duration::from_millis(3));
    let by_ring = (0..PENANCE * 2).take_while(|_| !writes.worth_trying()).count();
    assert_eq!(by_ring, PENANCE as usize - 1);
    assert!(writes.worth_trying());
}
