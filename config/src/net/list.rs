//! Lists that may be written as a list, as text with commas, or as one value.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

/// `[10, 20]`, `["10", "20"]`, `"10,20"` or `10`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct List(pub Vec<String>);

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> de::Visitor<'de> for Any {
            type Value = List;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts or whole numbers")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<List, E> {
                Ok(List(vec![value.to_string()]))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<List, E> {
                Ok(List(vec![value.to_string()]))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<List, E> {
                Ok(List(value.split(',').map(|part| part.trim().to_owned()).collect()))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<List, A::Error> {
                let mut list = Vec::new();
                while let Some(List(part)) = seq.next_element()? {
                    list.extend(part);
                }
                Ok(List(list))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl JsonSchema for List {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "List".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["array", "string", "integer"], "items": { "type": ["string", "integer"] } })
    }
}
