use super::super::stats::PortStats;

/// The description and the code name the same counters.
#[test]
fn the_description_has_every_counter() {
    let text = include_str!("../io.strata.Switch.varlink");
    let start = text.find("type Counters (").unwrap();
    let described: Vec<&str> = text[start..text[start..].find("\n)").unwrap() + start]
        .lines()
        .skip(1)
        .map(|line| line.trim().trim_end_matches(',').strip_suffix(": int").unwrap())
        .collect();
    let counted: Vec<_> = PortStats::default().list().into_iter().map(|(name, _)| name).collect();
    assert_eq!(described, counted);
}
