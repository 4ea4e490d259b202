//! The name of an adapter version, `name@version`: what replies carry and requests pin.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::AdapterError;

/// The name that means the model without an adapter; its only version is 0.
pub const BASE: &str = "base";
/// Longest name, in characters.
pub const MAX_NAME: usize = 64;

const FORM: &str =
    "a version is NAME@NUMBER, and a name 1 to 64 characters of a-z 0-9 . _ -, the first a letter or digit";
const RESERVED: &str = "`base` is the model without an adapter, only as base@0; choose another name";
const NUMBER: &str = "versions count from 1, without leading zeros";

/// An immutable version of an adapter. Displayed, parsed and serialised as `name@version`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VersionId {
    name: String,
    version: u64,
}

impl VersionId {
    /// Version `version` of the adapter `name`.
    ///
    /// # Errors
    /// When the name has another form, or is `base` with a version other than 0, or the version is 0 of another name.
    pub fn new(name: &str, version: u64) -> Result<Self, AdapterError> {
        let refuse = |hint| Err(AdapterError::Version { actual: format!("{name}@{version}"), hint });
        if !is_name(name) {
            return refuse(FORM);
        }
        match (name == BASE, version) {
            (true, 0) | (false, 1..) => Ok(Self { name: name.to_owned(), version }),
            (true, _) => refuse(RESERVED),
            (false, 0) => refuse(NUMBER),
        }
    }

    /// `base@0`, the model without an adapter.
    #[must_use]
    pub fn base() -> Self {
        Self { name: BASE.to_owned(), version: 0 }
    }

    /// Whether it is `base@0`.
    #[must_use]
    pub fn is_base(&self) -> bool {
        self.name == BASE
    }

    /// The name, without the version.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version's number.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// Whether `name` is `^[a-z0-9][a-z0-9._-]{0,63}$`.
fn is_name(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.len() <= MAX_NAME
        && bytes.first().is_some_and(|&c| plain(c))
        && bytes.iter().all(|&c| plain(c) || matches!(c, b'.' | b'_' | b'-'))
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

impl FromStr for VersionId {
    type Err = AdapterError;

    fn from_str(text: &str) -> Result<Self, AdapterError> {
        // What is quoted back is bounded, whatever was sent.
        let refuse = |hint| AdapterError::Version { actual: text.chars().take(MAX_NAME + 21).collect(), hint };
        let (name, number) = text.split_once('@').ok_or_else(|| refuse(FORM))?;
        if !is_name(name) {
            return Err(refuse(FORM));
        }
        // `parse` alone would take `+1` and `007`: one version has one name.
        let canonical = number == "0" || number.starts_with(|c: char| ('1'..='9').contains(&c));
        let version = number.parse().ok().filter(|_| canonical).ok_or_else(|| refuse(NUMBER))?;
        Self::new(name, version)
    }
}

impl TryFrom<String> for VersionId {
    type Error = AdapterError;

    fn try_from(text: String) -> Result<Self, AdapterError> {
        text.parse()
    }
}

impl From<VersionId> for String {
    fn from(id: VersionId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_back_as_they_are_shown() {
        for text in ["base@0", "base-2@1", "a@1", "0.b_c-d@18446744073709551615"] {
            let id: VersionId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
            let json = serde_json::to_string(&id).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<VersionId>(&json).unwrap(), id);
        }
        assert!(VersionId::base().is_base());
        assert_eq!("base@0".parse::<VersionId>().unwrap(), VersionId::base());
    }

    #[test]
    fn what_is_no_version_is_refused_with_a_hint() {
        let long = format!("{}@1", "a".repeat(65));
        for text in
            ["", "a", "@1", "A@1", "-a@1", ".@1", "a/b@1", "../a@1", "a@", "a@-1", "a@+1", "a@01", "a@1@2", &long]
        {
            assert!(text.parse::<VersionId>().is_err(), "{text}");
        }
        for text in ["a@18446744073709551616", "a@0", "base@1", "base@00", "a@1 "] {
            assert!(text.parse::<VersionId>().is_err(), "{text}");
        }
        let endless = "x".repeat(1 << 20).parse::<VersionId>().unwrap_err().to_string();
        assert!(endless.len() < 400 && endless.contains("NAME@NUMBER"), "{endless}");
        assert!("base@3".parse::<VersionId>().unwrap_err().to_string().contains("base@0"));
    }

    #[test]
    fn the_longest_name_is_sixty_four() {
        assert!(VersionId::new(&"a".repeat(64), 1).is_ok());
        assert!(VersionId::new(&"a".repeat(65), 1).is_err());
    }
}
