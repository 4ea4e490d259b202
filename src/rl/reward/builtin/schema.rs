//! The part of JSON Schema that says what a reply should look like. A keyword that is not here is refused when the
//! schema is read, so no schema is checked by halves.

use regex::Regex;
use serde_json::{Map, Value};

/// Keywords that say nothing about what is allowed.
const NOTES: [&str; 7] = ["$schema", "$id", "$comment", "title", "description", "default", "examples"];
/// Deepest nesting of a schema.
const MAX_DEPTH: usize = 32;

/// A schema, read.
#[derive(Debug)]
pub struct Schema {
    rules: Vec<Keyword>,
}

#[derive(Debug)]
enum Keyword {
    Never,
    Types(Vec<String>),
    OneOfValues(Vec<Value>),
    Required(Vec<String>),
    /// Of the named properties, and of all others.
    Properties(Vec<(String, Schema)>, Option<Box<Schema>>),
    Items(Box<Schema>),
    Count(What, Bound, u64),
    Compare(Bound, f64),
    Pattern(Regex),
    AnyOf(Vec<Schema>),
    AllOf(Vec<Schema>),
    OneOf(Vec<Schema>),
    Not(Box<Schema>),
}

#[derive(Debug, Clone, Copy)]
enum What {
    Characters,
    Items,
    Properties,
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast,
    AtMost,
    Above,
    Below,
}

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    /// The keyword that is unknown or has a wrong value.
    pub fn new(schema: &Value) -> Result<Self, String> {
        read(schema, 0)
    }

    /// Whether `value` is as the schema says.
    #[must_use]
    pub fn allows(&self, value: &Value) -> bool {
        self.rules.iter().all(|rule| rule.holds(value))
    }
}

fn read(schema: &Value, depth: usize) -> Result<Schema, String> {
    if depth > MAX_DEPTH {
        return Err(format!("is nested more than {MAX_DEPTH} deep"));
    }
    let map = match schema {
        Value::Bool(true) => return Ok(Schema { rules: Vec::new() }),
        Value::Bool(false) => return Ok(Schema { rules: vec![Keyword::Never] }),
        Value::Object(map) => map,
        _ => return Err("must be an object or a boolean".to_owned()),
    };
    let mut rules = Vec::new();
    for (key, value) in map {
        let read = keyword(map, key, value, depth + 1);
        rules.extend(read.map_err(|()| format!("keyword {key:?} is not supported, or not with this value"))?);
    }
    Ok(Schema { rules })
}

/// One keyword; `None` for one that says nothing, or that another one covers.
fn keyword(map: &Map<String, Value>, key: &str, value: &Value, depth: usize) -> Result<Option<Keyword>, ()> {
    let sub = |value: &Value| read(value, depth).map_err(|_| ());
    let boxed = |value: &Value| sub(value).map(Box::new);
    let subs = |value: &Value| value.as_array().ok_or(())?.iter().map(sub).collect::<Result<Vec<_>, ()>>();
    let count = |what, bound| value.as_u64().map(|n| Keyword::Count(what, bound, n)).ok_or(());
    let compare = |bound| value.as_f64().map(|n| Keyword::Compare(bound, n)).ok_or(());
    Ok(Some(match key {
        "type" => Keyword::Types(types(value)?),
        "const" => Keyword::OneOfValues(vec![value.clone()]),
        "enum" => Keyword::OneOfValues(value.as_array().ok_or(())?.clone()),
        "required" => Keyword::Required(strings(value)?),
        "properties" => {
            let named = value.as_object().ok_or(())?.iter().map(|(name, value)| Ok((name.clone(), sub(value)?)));
            Keyword::Properties(
                named.collect::<Result<_, ()>>()?,
                map.get("additionalProperties").map(boxed).transpose()?,
            )
        }
        "additionalProperties" if map.contains_key("properties") => return Ok(None),
        "additionalProperties" => Keyword::Properties(Vec::new(), Some(boxed(value)?)),
        "items" => Keyword::Items(boxed(value)?),
        "minItems" => count(What::Items, Bound::AtLeast)?,
        "maxItems" => count(What::Items, Bound::AtMost)?,
        "minLength" => count(What::Characters, Bound::AtLeast)?,
        "maxLength" => count(What::Characters, Bound::AtMost)?,
        "minProperties" => count(What::Properties, Bound::AtLeast)?,
        "maxProperties" => count(What::Properties, Bound::AtMost)?,
        "minimum" => compare(Bound::AtLeast)?,
        "maximum" => compare(Bound::AtMost)?,
        "exclusiveMinimum" => compare(Bound::Above)?,
        "exclusiveMaximum" => compare(Bound::Below)?,
        "pattern" => Keyword::Pattern(Regex::new(value.as_str().ok_or(())?).map_err(|_| ())?),
        "anyOf" => Keyword::AnyOf(subs(value)?),
        "allOf" => Keyword::AllOf(subs(value)?),
        "oneOf" => Keyword::OneOf(subs(value)?),
        "not" => Keyword::Not(boxed(value)?),
        note if NOTES.contains(&note) => return Ok(None),
        _ => return Err(()),
    }))
}

fn strings(value: &Value) -> Result<Vec<String>, ()> {
    value.as_array().ok_or(())?.iter().map(|text| text.as_str().map(str::to_owned).ok_or(())).collect()
}

fn types(value: &Value) -> Result<Vec<String>, ()> {
    let types = value.as_str().map_or_else(|| strings(value), |one| Ok(vec![one.to_owned()]))?;
    let known = ["null", "boolean", "number", "integer", "string", "array", "object"];
    if types.iter().all(|name| known.contains(&name.as_str())) { Ok(types) } else { Err(()) }
}

impl Keyword {
    /// Keywords about another type than the value's hold, as the standard has it.
    fn holds(&self, value: &Value) -> bool {
        match self {
            Self::Never => false,
            Self::Types(names) => names.iter().any(|name| is(value, name)),
            Self::OneOfValues(values) => values.iter().any(|other| equal(value, other)),
            Self::Required(names) => {
                value.as_object().is_none_or(|map| names.iter().all(|name| map.contains_key(name)))
            }
            Self::Properties(named, others) => value.as_object().is_none_or(|map| {
                map.iter().all(|(name, value)| match named.iter().find(|(known, _)| known == name) {
                    Some((_, schema)) => schema.allows(value),
                    None => others.as_ref().is_none_or(|schema| schema.allows(value)),
                })
            }),
            Self::Items(schema) => value.as_array().is_none_or(|items| items.iter().all(|item| schema.allows(item))),
            Self::Count(what, bound, limit) => what.count(value).is_none_or(|n| bound.holds(n as f64, *limit as f64)),
            Self::Compare(bound, limit) => value.as_f64().is_none_or(|number| bound.holds(number, *limit)),
            Self::Pattern(pattern) => value.as_str().is_none_or(|text| pattern.is_match(text)),
            Self::AnyOf(schemas) => schemas.iter().any(|schema| schema.allows(value)),
            Self::AllOf(schemas) => schemas.iter().all(|schema| schema.allows(value)),
            Self::OneOf(schemas) => schemas.iter().filter(|schema| schema.allows(value)).count() == 1,
            Self::Not(schema) => !schema.allows(value),
        }
    }
}

impl What {
    fn count(self, value: &Value) -> Option<usize> {
        match self {
            Self::Characters => value.as_str().map(|text| text.chars().count()),
            Self::Items => value.as_array().map(Vec::len),
            Self::Properties => value.as_object().map(Map::len),
        }
    }
}

impl Bound {
    fn holds(self, number: f64, limit: f64) -> bool {
        match self {
            Self::AtLeast => number >= limit,
            Self::AtMost => number <= limit,
            Self::Above => number > limit,
            Self::Below => number < limit,
        }
    }
}

fn is(value: &Value, name: &str) -> bool {
    match (value, name) {
        (Value::Number(number), "integer") => number.as_f64().is_some_and(|n| n.fract() == 0.0),
        (Value::Number(_), "number")
        | (Value::Null, "null")
        | (Value::Bool(_), "boolean")
        | (Value::String(_), "string")
        | (Value::Array(_), "array")
        | (Value::Object(_), "object") => true,
        _ => false,
    }
}

/// Equality of JSON: `1` and `1.0` are the same number.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| equal(x, y)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(key, value)| y.get(key).is_some_and(|other| equal(value, other)))
        }
        _ => a == b,
    }
}
