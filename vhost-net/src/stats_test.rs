use super::*;

#[test]
fn every_counter_has_a_line_for_every_pair() {
    let pairs = [PairStats::default(), PairStats::default()];
    pairs[1].tx.frames.add(7);
    let text = prometheus("tap\"0", &pairs);
    assert!(text.contains("# TYPE strata_net_tx_frames_total counter\n"));
    assert!(text.contains("strata_net_tx_frames_total{nic=\"tap\\\"0\",pair=\"1\"} 7\n"), "{text}");
    assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 2 * pairs[0].list().len());
}
