//! The compact syntax of flags: `path=disk.img,readonly,queues=4`.
//!
//! A word alone means `=true`; `,,` is a comma inside a value, as in QEMU; what is neither a word nor has a `=`, a
//! number or an address, is more of the value before it: `trunk=10,20`. The keys and their rules are those
//! of the file: this only splits, [`crate::node`] and [`crate::check`] do the rest.

use serde::de::DeserializeOwned;

use crate::error::ConfigError;
use crate::node::Node;

/// Reads one flag's text into the table type `T`.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, ConfigError> {
    let flag = |reason: String| ConfigError::Flag { text: text.to_owned(), reason };
    let mut table: Vec<(String, Node)> = Vec::new();
    for part in split(text) {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) => (key, value),
            None if is_word(&part) => (part.as_str(), "true"),
            // More of a list: trunk=10,20.
            None => match table.last_mut() {
                Some((_, Node::Flag(list))) => {
                    list.push(',');
                    list.push_str(&part);
                    continue;
                }
                _ => (part.as_str(), "true"),
            },
        };
        if key.is_empty() {
            return Err(flag("a key is missing; write key=value[,key=value...]".to_owned()));
        }
        if value.is_empty() {
            return Err(flag(format!("`{key}=` has no value")));
        }
        if table.iter().any(|(other, _)| other == key) {
            return Err(flag(format!("key `{key}` is given twice")));
        }
        table.push((key.to_owned(), Node::Flag(value.to_owned())));
    }
    T::deserialize(Node::Table(table))
}

/// Whether it could be a key.
fn is_word(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_lowercase() || matches!(b, b'_' | b'-'))
}

/// Splits at single commas; a doubled comma is one comma of the value.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}
