//! What was counted, as it is shown: to people in the log, to programs as JSON, to Prometheus. Called by whatever reports
//! counters, of a card or of a switch.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

/// Names and values of counters.
pub type Counted = Vec<(&'static str, u64)>;

/// A line with what is not 0; `None` if all is.
#[must_use]
pub fn line(counted: &[(&str, u64)]) -> Option<String> {
    let text: Vec<String> = counted
        .iter()
        .filter(|(_, value)| *value > 0)
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    (!text.is_empty()).then(|| text.join(", "))
}

/// As an object.
pub(crate) fn object(counted: Counted) -> Map<String, Value> {
    counted.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect()
}

/// As Prometheus text (exposition format 0.0.4): `PREFIX_NAME_total{LABELS} VALUE`, for rows that have the same counters
/// under labels of their own.
pub(crate) fn prometheus(prefix: &str, rows: &[(String, Counted)]) -> String {
    let mut text = String::new();
    for (at, (name, _)) in rows.first().map(|(_, counted)| counted).into_iter().flatten().enumerate() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "# TYPE {prefix}_{name}_total counter");
        for (labels, counted) in rows {
            let value = counted.get(at).map_or(0, |(_, value)| *value);
            let _ = writeln!(text, "{prefix}_{name}_total{{{labels}}} {value}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_told_what_is_not_0() {
        assert_eq!(line(&[("a", 0), ("b", 7), ("c", 1)]), Some("b 7, c 1".to_owned()));
        assert_eq!(line(&[("a", 0)]), None);
    }

    #[test]
    fn a_family_has_its_type_once_and_a_line_for_every_row() {
        let rows = [
            ("x=\"1\"".to_owned(), vec![("a", 1), ("b", 2)]),
            ("x=\"2\"".to_owned(), vec![("a", 3), ("b", 4)]),
        ];
        let expected = "# TYPE p_a_total counter\np_a_total{x=\"1\"} 1\np_a_total{x=\"2\"} 3\n\
                        # TYPE p_b_total counter\np_b_total{x=\"1\"} 2\np_b_total{x=\"2\"} 4\n";
        assert_eq!(prometheus("p", &rows), expected);
        assert_eq!(prometheus("p", &[]), "");
    }
}
