//! Typed access to a TOML document that goes on after a fault and remembers where values stand.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{AddressRange, Bulk, BusyPoll, Mode, Problem, Xdp, ZeroCopy};
use crate::wire::Mac;

/// How much of a faulty value an error shows, in characters.
const SHOWN: usize = 60;

/// A text and the faults found in it so far.
pub(super) struct Document<'t> {
    text: &'t str,
    /// The offset of each line feed.
    line_ends: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

/// Where a value stands.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub key: String,
    value: String,
    line: usize,
}

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub value: T,
    pub place: Place,
}

impl Place {
    fn problem(&self, reason: impl Into<String>) -> Problem {
        let (key, value) = (self.key.clone(), self.value.clone());
        Problem { key, value, reason: reason.into(), line: Some(self.line) }
    }
}

impl<'t> Document<'t> {
    pub fn new(text: &'t str) -> Self {
        let line_ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(offset, _)| offset);
        Self { text, line_ends: line_ends.collect(), problems: RefCell::default(), warnings: RefCell::default() }
    }

    /// Parses the text; syntax errors are remembered like any other.
    pub fn root(&self) -> DeTable<'t> {
        let (root, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let line = error.span().map(|span| self.line(&span));
            let reason = error.message().to_owned();
            self.problems.borrow_mut().push(Problem { key: String::new(), value: String::new(), reason, line });
        }
        root.into_inner()
    }

    /// Remembers that the value at `place` is refused.
    pub fn refuse(&self, place: &Place, reason: impl Into<String>) {
        self.problems.borrow_mut().push(place.problem(reason));
    }

    /// Remembers that the value at `place` works, but is hardly what was meant.
    pub fn warn(&self, place: &Place, reason: impl Into<String>) {
        self.warnings.borrow_mut().push(place.problem(reason));
    }

    /// Takes the warnings so far.
    pub fn take_warnings(&self) -> Vec<Problem> {
        self.warnings.take()
    }

    pub fn is_clean(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    /// The faults, by line.
    pub fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }

    fn missing(&self, key: String, line: Option<usize>) {
        let reason = "is required".to_owned();
        self.problems.borrow_mut().push(Problem { key, value: String::new(), reason, line });
    }

    fn line(&self, span: &Range<usize>) -> usize {
        self.line_ends.partition_point(|end| *end < span.start) + 1
    }

    fn place(&self, key: String, span: &Range<usize>) -> Place {
        let source = self.text.get(span.clone()).unwrap_or_default().trim();
        let mut value: String = source.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
        if source.chars().nth(SHOWN).is_some() {
            value.push('…');
        }
        Place { key, value, line: self.line(span) }
    }
}

/// A table of the document. [`Section::finish`] refuses the keys that no one asked for.
pub(super) struct Section<'d, 't> {
    doc: &'d Document<'t>,
    table: DeTable<'t>,
    path: String,
    line: Option<usize>,
}

impl<'d, 't> Section<'d, 't> {
    pub fn root(doc: &'d Document<'t>) -> Self {
        Self { doc, table: doc.root(), path: String::new(), line: None }
    }

    /// The table at `key`, empty when the file has none.
    pub fn section(&mut self, key: &str) -> Section<'d, 't> {
        let path = self.path_of(key);
        let empty = Section { doc: self.doc, table: DeTable::new(), path: path.clone(), line: self.line };
        let Some(value) = self.table.remove(key) else { return empty };
        self.table_of(path, value).unwrap_or(empty)
    }

    /// The tables of the array `key`, none when the file has none.
    pub fn sections(&mut self, key: &str) -> Vec<Section<'d, 't>> {
        let Some(value) = self.table.remove(key) else { return Vec::new() };
        let path = self.path_of(key);
        let span = value.span();
        let DeValue::Array(values) = value.into_inner() else {
            self.doc.refuse(&self.doc.place(path, &span), "is not an array of tables");
            return Vec::new();
        };
        let section = |(index, value)| self.table_of(format!("{path}[{index}]"), value);
        values.into_iter().enumerate().filter_map(section).collect()
    }

    /// The value of `key`; a fault when it is missing.
    pub fn required<T: Value>(&mut self, key: &str) -> Option<At<T>> {
        if !self.table.contains_key(key) {
            self.doc.missing(self.path_of(key), self.line);
        }
        self.optional(key)
    }

    /// The value of `key` when it is there and of the right type.
    pub fn optional<T: Value>(&mut self, key: &str) -> Option<At<T>> {
        let value = self.table.remove(key)?;
        self.value_of(self.path_of(key), &value)
    }

    /// The value of `key`, which must satisfy `check`, or `default` when it is missing.
    pub fn or<T: Value>(&mut self, key: &str, default: T, check: impl FnOnce(&T) -> Result<(), String>) -> T {
        let Some(found) = self.optional(key) else { return default };
        if let Err(reason) = check(&found.value) {
            self.doc.refuse(&found.place, reason);
        }
        found.value
    }

    /// The values of the array `key` and its place, `None` when it is missing or no array.
    pub fn list<T: Value>(&mut self, key: &str) -> Option<At<Vec<At<T>>>> {
        let value = self.table.remove(key)?;
        let path = self.path_of(key);
        let place = self.doc.place(path.clone(), &value.span());
        let DeValue::Array(values) = value.get_ref() else {
            self.doc.refuse(&place, "is not an array");
            return None;
        };
        let item = |(index, value)| self.value_of(format!("{path}[{index}]"), value);
        Some(At { value: values.iter().enumerate().filter_map(item).collect(), place })
    }

    /// As [`Section::list`]; a fault when it is missing.
    pub fn required_list<T: Value>(&mut self, key: &str) -> Option<At<Vec<At<T>>>> {
        if !self.table.contains_key(key) {
            self.doc.missing(self.path_of(key), self.line);
        }
        self.list(key)
    }

    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Refuses `key` if it is there.
    pub fn forbid(&mut self, key: &str, reason: &str) {
        if let Some(value) = self.table.remove(key) {
            self.doc.refuse(&self.doc.place(self.path_of(key), &value.span()), reason);
        }
    }

    /// A value that stands for `key`, which the file does not have.
    pub fn implied(&self, key: &str, value: String) -> At<String> {
        let place = Place { key: self.path_of(key), value: value.clone(), line: self.line.unwrap_or(1) };
        At { value, place }
    }

    /// Refuses what is left.
    pub fn finish(self) {
        for key in self.table.keys() {
            let place =
                Place { key: self.path_of(key.get_ref()), value: String::new(), line: self.doc.line(&key.span()) };
            self.doc.refuse(&place, "is not a known key");
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn table_of(&self, path: String, value: Spanned<DeValue<'t>>) -> Option<Section<'d, 't>> {
        let span = value.span();
        if let DeValue::Table(table) = value.into_inner() {
            Some(Section { doc: self.doc, table, path, line: Some(self.doc.line(&span)) })
        } else {
            self.doc.refuse(&self.doc.place(path, &span), "is not a table");
            None
        }
    }

    fn value_of<T: Value>(&self, path: String, value: &Spanned<DeValue<'_>>) -> Option<At<T>> {
        let place = self.doc.place(path, &value.span());
        match T::read(value.get_ref()) {
            Ok(value) => Some(At { value, place }),
            Err(reason) => {
                self.doc.refuse(&place, reason);
                None
            }
        }
    }
}

/// A type that a key may have.
pub(super) trait Value: Sized {
    /// The value, or why it is none.
    fn read(value: &DeValue<'_>) -> Result<Self, String>;
}

impl Value for bool {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| "is not true or false".to_owned())
    }
}

/// Types that read themselves from a string, and what to say when they do not.
macro_rules! from_string {
    ($($type:ty, $reason:expr;)+) => {$(
        impl Value for $type {
            fn read(value: &DeValue<'_>) -> Result<Self, String> {
                let text = value.as_str().ok_or_else(|| "is not a string".to_owned())?;
                <$type>::from_str(text).map_err($reason)
            }
        }
    )+};
}

from_string! {
    String, |never| match never {};
    IpAddr, |_| "is not an IP address".to_owned();
    SocketAddr, |_| "is not an address with a port such as 127.0.0.1:9477".to_owned();
    IpNet, |_| "is not an address range such as 10.244.1.0/24".to_owned();
    Mac, |_| "is not an Ethernet address such as 02:00:00:00:00:02".to_owned();
    AddressRange, |reason| reason;
    Mode, |reason| reason;
    Xdp, |reason| reason;
    BusyPoll, |reason| reason;
    ZeroCopy, |reason| reason;
    Bulk, |reason| reason;
}

impl Value for PathBuf {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let path = PathBuf::from(String::read(value)?);
        if path.is_absolute() { Ok(path) } else { Err("is not an absolute path".to_owned()) }
    }
}

macro_rules! from_integer {
    ($($type:ty),+) => {$(
        impl Value for $type {
            fn read(value: &DeValue<'_>) -> Result<Self, String> {
                let integer = value.as_integer().ok_or_else(|| "is not a whole number".to_owned())?;
                <$type>::from_str_radix(integer.as_str(), integer.radix())
                    .map_err(|_| format!("is not between 0 and {}", <$type>::MAX))
            }
        }
    )+};
}

from_integer!(u16, u32, u64, usize);
