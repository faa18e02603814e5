//! A machine file's values before their types are known, and the deserializer over them.
//!
//! TOML, JSON and flags all become a [`Node`] first. Reading the raw structures from it, rather than straight
//! from the parsers, buys errors that carry the key's path and suggest the nearest key, and lets a flag's text
//! (`queues=4`) become the number the key wants.

use std::fmt;
use std::path::Path;

use serde::de::{
    self, DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};

use crate::error::ConfigError;

/// A value as the parser saw it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    /// Text from a flag: becomes whatever type its key has.
    Flag(String),
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Null,
    List(Vec<Node>),
    Table(Vec<(String, Node)>),
}

impl Node {
    pub(crate) fn of_toml(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::Syntax {
            format: "TOML",
            reason: error.to_string().trim_end().to_owned(),
        })
    }

    pub(crate) fn of_json(text: &str) -> Result<Self, ConfigError> {
        serde_json::from_str(text)
            .map_err(|error| ConfigError::Syntax { format: "JSON", reason: error.to_string() })
    }

    /// TOML or JSON: a text whose first character is `{` is JSON.
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        if text.trim_start().starts_with('{') { Self::of_json(text) } else { Self::of_toml(text) }
    }

    pub(crate) fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        Self::parse(&std::fs::read_to_string(path).map_err(read)?)
    }

    fn whole_number<E: de::Error>(text: &str) -> Result<i64, E> {
        text.parse().map_err(|_| E::invalid_type(de::Unexpected::Str(text), &"a whole number"))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Node;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Bool(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Int(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
                // Larger numbers fit no key; as a float they are refused with their value.
                Ok(i64::try_from(value).map_or(Node::Float(value as f64), Node::Int))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Float(value))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Text(value.to_owned()))
            }
            fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut list = Vec::new();
                while let Some(node) = seq.next_element()? {
                    list.push(node);
                }
                Ok(Node::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut table: Vec<(String, Node)> = Vec::new();
                while let Some((key, node)) = map.next_entry::<String, Node>()? {
                    // TOML refuses this itself, JSON does not.
                    if table.iter().any(|(other, _)| *other == key) {
                        return Err(de::Error::custom(format_args!("key `{key}` is given twice")));
                    }
                    table.push((key, node));
                }
                Ok(Node::Table(table))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl<'de> Deserializer<'de> for Node {
    type Error = ConfigError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match self {
            Node::Flag(text) | Node::Text(text) => visitor.visit_string(text),
            Node::Bool(value) => visitor.visit_bool(value),
            Node::Int(value) => visitor.visit_i64(value),
            Node::Float(value) => visitor.visit_f64(value),
            Node::Null => visitor.visit_unit(),
            Node::List(nodes) => visitor.visit_seq(List { nodes: nodes.into_iter(), index: 0 }),
            Node::Table(entries) => visitor.visit_map(Table { entries: entries.into_iter(), value: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match self {
            Node::Null => visitor.visit_none(),
            node => visitor.visit_some(node),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match self {
            Node::Flag(text) => match text.as_str() {
                "true" | "on" | "yes" => visitor.visit_bool(true),
                "false" | "off" | "no" => visitor.visit_bool(false),
                _ => Err(ConfigError::invalid_type(de::Unexpected::Str(&text), &"a boolean")),
            },
            node => node.deserialize_any(visitor),
        }
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match self {
            Node::Flag(text) => visitor.visit_i64(Node::whole_number(&text)?),
            node => node.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

struct List {
    nodes: std::vec::IntoIter<Node>,
    index: usize,
}

impl<'de> SeqAccess<'de> for List {
    type Error = ConfigError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ConfigError> {
        let Some(node) = self.nodes.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        seed.deserialize(node).map(Some).map_err(|error| error.inside(&format!("[{index}]")))
    }
}

struct Table {
    entries: std::vec::IntoIter<(String, Node)>,
    value: Option<(String, Node)>,
}

impl<'de> MapAccess<'de> for Table {
    type Error = ConfigError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ConfigError> {
        let Some((key, node)) = self.entries.next() else { return Ok(None) };
        self.value = Some((key.clone(), node));
        seed.deserialize(IntoDeserializer::<ConfigError>::into_deserializer(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ConfigError> {
        let (key, node) = self.value.take().ok_or_else(|| ConfigError::custom("a value before its key"))?;
        seed.deserialize(node).map_err(|error| error.inside(&key))
    }
}
