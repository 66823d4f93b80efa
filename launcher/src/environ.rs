//! The process's environment: the one module that reads it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::ops::Bound;

/// A snapshot, ordered by name; values need not be UTF-8.
#[derive(Clone, Debug, Default)]
pub struct Environ(BTreeMap<OsString, OsString>);

impl Environ {
    /// This process's, now.
    pub fn of_process() -> Environ {
        Environ(std::env::vars_os().collect())
    }

    /// From pairs.
    #[cfg(test)]
    pub fn from_pairs(pairs: &[(&str, &str)]) -> Environ {
        Environ(pairs.iter().map(|(k, v)| (k.into(), v.into())).collect())
    }

    /// A value, if set and UTF-8.
    pub fn get(&self, name: &str) -> Option<String> {
        self.0.get(OsStr::new(name))?.to_str().map(String::from)
    }

    /// A value, whatever its bytes.
    pub fn get_os(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// Whether there are any whose names begin so.
    pub fn has_any(&self, beginning: &str) -> bool {
        let from = (Bound::Included(OsStr::new(beginning)), Bound::Unbounded);
        let first = self.0.range::<OsStr, _>(from).next();
        first.is_some_and(|(name, _)| name.as_encoded_bytes().starts_with(beginning.as_bytes()))
    }

    /// Sets a value.
    pub fn set(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.0.insert(name.into(), value.into());
    }

    /// Removes a value.
    pub fn remove(&mut self, name: &OsStr) {
        self.0.remove(name);
    }

    /// Without the variables whose names begin so.
    pub fn without(mut self, beginnings: &[&str]) -> Environ {
        self.0
            .retain(|name, _| !beginnings.iter().any(|b| name.as_encoded_bytes().starts_with(b.as_bytes())));
        self
    }

    /// All, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0.iter().map(|(k, v)| (k.as_os_str(), v.as_os_str()))
    }
}
