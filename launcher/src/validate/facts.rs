//! What the probe says (`launcher/probe`): a word and fields, line by line.

use std::collections::BTreeMap;

/// A line of the probe's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its first word.
    pub kind: String,
    fields: BTreeMap<String, String>,
}

impl Fact {
    /// A field's text; empty where it is missing.
    pub fn text(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// A field's number.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.fields.get(name)?.parse().ok()
    }

    /// Whether a field is 1.
    pub fn is_set(&self, name: &str) -> bool {
        self.number(name) == Some(1)
    }
}

/// All facts, in order.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    all: Vec<Fact>,
    /// Lines of others, as libraries print them.
    pub others: Vec<String>,
}

impl Facts {
    /// Sorts what was printed.
    pub fn of(text: &str) -> Facts {
        let mut facts = Facts::default();
        for line in text.lines() {
            let mut parts = line.split('\t');
            let kind = parts.next().unwrap_or_default();
            let fields: Option<BTreeMap<String, String>> = parts
                .map(|part| part.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
                .collect();
            let is_word = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_lowercase());
            match fields {
                Some(fields) if is_word => facts.all.push(Fact { kind: kind.to_owned(), fields }),
                _ => facts.others.push(line.to_owned()),
            }
        }
        facts
    }

    /// Those of this kind.
    pub fn all<'a>(&'a self, kind: &str) -> impl Iterator<Item = &'a Fact> + use<'a> {
        let kind = kind.to_owned();
        self.all.iter().filter(move |fact| fact.kind == kind)
    }

    /// The first of this kind.
    pub fn one(&self, kind: &str) -> Option<&Fact> {
        self.all.iter().find(|fact| fact.kind == kind)
    }

    /// What was being done last.
    pub fn last(&self) -> Option<&Fact> {
        self.all.last()
    }

    /// Whether the probe came to its end.
    pub fn are_whole(&self) -> bool {
        self.last().is_some_and(|fact| fact.kind == "end")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_told_from_what_libraries_print() {
        let facts = Facts::of(
            "opening\tname=libx.so\n# a line = of UCX\nport\tname=rxe0\tport=1\n\nWARN\tx=1\nodd\tno value\nend\n",
        );
        assert_eq!(facts.one("port").map(|f| (f.text("name"), f.number("port"))), Some(("rxe0", Some(1))));
        assert_eq!(facts.others, ["# a line = of UCX", "", "WARN\tx=1", "odd\tno value"]);
        assert!(facts.are_whole());
        assert_eq!(facts.one("opening").map(|f| f.text("missing")), Some(""));
    }
}
