//! What a bench found: tables for people, JSON lines for programs. Called by each bench, which says what figures a run
//! of its has. Ratios are those of the first backend to each other one.

use std::collections::BTreeMap;

use crate::stats::{median, ratio};

/// The runs of each backend, by its place among the names.
pub(crate) type Runs<R> = BTreeMap<usize, Vec<R>>;

/// Something a run has measured.
pub(crate) struct Figure<R> {
    head: &'static str,
    width: usize,
    key: &'static str,
    digits: usize,
    unit: f64,
    compared: Option<&'static str>,
    of: fn(&R) -> f64,
}

impl<R> Figure<R> {
    /// A column of that head and width with so many digits behind the point, or a key in JSON. A figure that is 0 was not
    /// measured.
    pub(crate) const fn new(
        head: &'static str,
        width: usize,
        digits: usize,
        key: &'static str,
        of: fn(&R) -> f64,
    ) -> Self {
        Self { head, width, key, digits, unit: 1.0, compared: None, of }
    }

    /// The table tells it in this unit.
    pub(crate) const fn in_units_of(mut self, unit: f64) -> Self {
        self.unit = unit;
        self
    }

    /// Backends are compared in it, and this is what it is called then.
    pub(crate) const fn compared(mut self, called: &'static str) -> Self {
        self.compared = Some(called);
        self
    }
}

/// What was found, for programs or for people.
pub(crate) fn print<R>(json: bool, title: &str, names: &[&str], figures: &[Figure<R>], runs: &Runs<R>) {
    if json {
        lines(title, names, figures, runs);
    } else {
        table(title, names, figures, runs);
    }
}

/// One line per backend, then one per comparison. The spread is that of the first figure.
pub(crate) fn table<R>(title: &str, names: &[&str], figures: &[Figure<R>], runs: &Runs<R>) {
    println!("{title}");
    print!("  {:10}", "");
    for (place, Figure { head, width, .. }) in figures.iter().enumerate() {
        print!(" {head:>width$}");
        if place == 0 {
            print!(" {:>7}", "spread");
        }
    }
    println!();
    for (index, name) in names.iter().enumerate() {
        let Some(runs) = runs.get(&index) else { continue };
        print!("  {name:10}");
        for (place, Figure { width, digits, unit, of, .. }) in figures.iter().enumerate() {
            let (value, spread) = median(&runs.iter().map(of).collect::<Vec<_>>());
            print!(" {:>width$.digits$}", value / unit);
            if place == 0 {
                print!(" {:>6.0}%", spread * 100.0);
            }
        }
        println!();
    }
    for (index, name) in names.iter().enumerate().skip(1) {
        let (Some(ours), Some(theirs)) = (runs.get(&0), runs.get(&index)) else { continue };
        let ratios: Vec<String> = figures
            .iter()
            .filter_map(|figure| Some((figure.compared?, figure.of)))
            .filter(|(_, of)| ours.iter().chain(theirs).all(|run| of(run) > 0.0))
            .map(|(called, of)| {
                let (ratio, spread) = ratio(ours, theirs, of);
                format!("{called} {ratio:.2}x (+-{:.0}%)", spread * 50.0)
            })
            .collect();
        println!("  vs {name:9} {}", ratios.join(", "));
    }
    println!();
}

/// One object per backend: the median of each figure, and all values of the first.
fn lines<R>(title: &str, names: &[&str], figures: &[Figure<R>], runs: &Runs<R>) {
    for (index, name) in names.iter().enumerate() {
        let Some(runs) = runs.get(&index) else { continue };
        let mut line = serde_json::Map::new();
        line.insert("load".to_owned(), title.into());
        line.insert("backend".to_owned(), (*name).into());
        for (place, figure) in figures.iter().enumerate() {
            let values: Vec<f64> = runs.iter().map(figure.of).collect();
            line.insert(figure.key.to_owned(), median(&values).0.into());
            if place == 0 {
                line.insert("runs".to_owned(), values.into());
            }
        }
        println!("{}", serde_json::Value::Object(line));
    }
}
