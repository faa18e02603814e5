use super::*;

/// The description and the code name the same counters.
#[test]
fn the_description_has_every_counter() {
    let text = include_str!("io.strata.Net.varlink");
    let start = text.find("type Pair (").unwrap();
    let described: Vec<&str> = text[start..text[start..].find("\n)").unwrap() + start]
        .lines()
        .skip(1)
        .map(|line| line.trim().trim_end_matches(',').strip_suffix(": int").unwrap())
        .collect();
    let mut counted = vec!["pair"];
    counted.extend(PairStats::default().list().into_iter().map(|(name, _)| name));
    assert_eq!(described, counted);
}
