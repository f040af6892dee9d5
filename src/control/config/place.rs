//! Reads raw values into typed ones, and notes what is wrong with each.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use super::error::{Source, quoted, suggest};
use super::raw::{Content, Leaf, Node, Scalar};
use super::units;

/// Collects problems and warnings while a file is validated.
#[derive(Debug)]
pub(super) struct Report<'s> {
    source: Source<'s>,
    problems: RefCell<Vec<Note>>,
    warnings: RefCell<Vec<Note>>,
}

/// Proof that a problem was noted: only [`Place`] makes one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reported(());

impl<'s> Report<'s> {
    /// An empty report on a file.
    pub(super) fn new(source: Source<'s>) -> Self {
        Self { source, problems: RefCell::default(), warnings: RefCell::default() }
    }

    /// Problems and warnings, as noted.
    pub(super) fn into_parts(self) -> (Vec<Note>, Vec<Note>) {
        (self.problems.into_inner(), self.warnings.into_inner())
    }

    /// Notes a problem that has no key to name.
    pub(super) fn problem(&self, span: Range<usize>, message: String) -> Reported {
        self.problems.borrow_mut().push((span, message));
        Reported(())
    }
}

/// A table of a list, if it is one.
pub(super) type Table<'r, 'a, T> = Result<(Place<'r>, &'a T), Reported>;

/// A byte range and what there is to say about it.
type Note = (Range<usize>, String);

/// A key or table in the file: its dotted path and its span.
#[derive(Clone)]
pub(super) struct Place<'r> {
    report: &'r Report<'r>,
    path: String,
    span: Range<usize>,
}

impl fmt::Debug for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:?}", self.path, self.span)
    }
}

impl<'r> Place<'r> {
    /// The file itself.
    pub(super) fn root(report: &'r Report<'r>) -> Self {
        Self { report, path: String::new(), span: 0..0 }
    }

    /// A key of this table, at `span`.
    pub(super) fn child(&self, key: &str, span: Range<usize>) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        Self { report: self.report, path: format!("{}{dot}{key}", self.path), span }
    }

    /// An element of this list, at `span`.
    pub(super) fn item(&self, index: usize, span: Range<usize>) -> Self {
        Self { report: self.report, path: format!("{}[{index}]", self.path), span }
    }

    /// The dotted path, as messages show it.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Where it stands, in bytes.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The line where it stands.
    pub(super) fn line(&self) -> usize {
        self.report.source.position(self.span.start).line
    }

    /// Notes "`path` what".
    pub(super) fn problem(&self, what: impl fmt::Display) -> Reported {
        self.report.problem(self.span(), format!("`{}` {what}", self.path))
    }

    /// Notes "`path` what" as something that is allowed but probably not meant.
    pub(super) fn warning(&self, what: impl fmt::Display) {
        let message = format!("`{}` {what}", self.path);
        self.report.warnings.borrow_mut().push((self.span(), message));
    }

    /// Notes that a key of this table is missing.
    pub(super) fn missing(&self, key: &str, write: &str) -> Reported {
        self.child(key, self.span()).problem(format_args!("is missing: {write}"))
    }

    /// Notes that the value is not what the key takes.
    pub(super) fn wrong(&self, value: &Scalar, write: impl fmt::Display) -> Reported {
        self.problem(format_args!("is {}: {write}", Shown(value)))
    }

    /// The table that `node`, the value of `key`, should be.
    pub(super) fn wanted<'a, T>(
        &self,
        key: &str,
        node: &'a Node<T>,
        write: &str,
    ) -> Result<(Self, &'a T), Reported> {
        let place = self.child(key, node.span());
        match node.get_ref() {
            Content::Wanted(table) => Ok((place, table)),
            Content::Other(other) => Err(place.wrong(other, write)),
        }
    }

    /// The table under `key`, if there is one.
    pub(super) fn table<'a, T>(
        &self,
        key: &str,
        node: Option<&'a Node<T>>,
        write: &str,
    ) -> Option<(Self, &'a T)> {
        node.and_then(|node| self.wanted(key, node, write).ok())
    }

    /// The tables in the list under `key`, of which some may be something else.
    pub(super) fn tables<'a, T>(
        &self,
        key: &str,
        nodes: &'a Node<Vec<Node<T>>>,
        write: &str,
    ) -> Result<Vec<Table<'r, 'a, T>>, Reported> {
        let (list, nodes) = self.wanted(key, nodes, write)?;
        let read = |(index, node): (usize, &'a Node<T>)| {
            let place = list.item(index, node.span());
            match node.get_ref() {
                Content::Wanted(table) => Ok((place, table)),
                Content::Other(other) => Err(place.wrong(other, write)),
            }
        };
        Ok(nodes.iter().enumerate().map(read).collect())
    }

    /// The tables in the list under `key`, without those that are something else.
    pub(super) fn good_tables<'a, T>(
        &self,
        key: &str,
        nodes: Option<&'a Node<Vec<Node<T>>>>,
        write: &str,
    ) -> Vec<(Self, &'a T)> {
        let tables = nodes.map(|nodes| self.tables(key, nodes, write));
        tables.and_then(Result::ok).unwrap_or_default().into_iter().filter_map(Result::ok).collect()
    }

    /// A scalar with its place.
    pub(super) fn leaf<'a>(&self, key: &str, leaf: &'a Option<Leaf>) -> Option<(Self, &'a Scalar)> {
        leaf.as_ref().map(|leaf| (self.child(key, leaf.span()), leaf.get_ref()))
    }

    /// Text under `key`.
    pub(super) fn text<'a>(
        &self,
        key: &str,
        leaf: &'a Option<Leaf>,
        write: &str,
    ) -> Option<Result<(Self, &'a str), Reported>> {
        let (place, scalar) = self.leaf(key, leaf)?;
        Some(match scalar {
            Scalar::Text(text) => Ok((place, text.as_str())),
            other => Err(place.wrong(other, write)),
        })
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, key: &str, leaf: &Option<Leaf>, default: bool) -> bool {
        match self.leaf(key, leaf) {
            None => default,
            Some((_, Scalar::Boolean(value))) => *value,
            Some((place, other)) => {
                place.wrong(other, "write true or false");
                default
            }
        }
    }

    /// A whole number within `range`.
    pub(super) fn integer<T>(
        &self,
        key: &str,
        leaf: &Option<Leaf>,
        range: RangeInclusive<T>,
        default: T,
    ) -> T
    where
        T: TryFrom<i128> + PartialOrd + fmt::Display,
    {
        match self.leaf(key, leaf) {
            None => default,
            Some((place, scalar)) => place.number(scalar, &range).unwrap_or(default),
        }
    }

    /// This very value as a whole number within `range`.
    pub(super) fn number<T>(&self, value: &Scalar, range: &RangeInclusive<T>) -> Result<T, Reported>
    where
        T: TryFrom<i128> + PartialOrd + fmt::Display,
    {
        let number = match value {
            Scalar::Integer(number) => T::try_from(*number).ok(),
            _ => None,
        };
        number.filter(|number| range.contains(number)).ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            self.wrong(value, format_args!("write a whole number from {low} to {high}"))
        })
    }

    /// A time above zero.
    pub(super) fn duration(&self, key: &str, leaf: &Option<Leaf>, default: Duration) -> Duration {
        let value = self.duration_or_zero(key, leaf, default);
        match self.leaf(key, leaf) {
            Some((place, scalar)) if value.is_zero() => {
                let default = units::show_duration(default);
                place.wrong(
                    scalar,
                    format_args!("write a time above zero (the default is \"{default}\")"),
                );
                value
            }
            _ => value,
        }
    }

    /// A time, zero included.
    pub(super) fn duration_or_zero(
        &self,
        key: &str,
        leaf: &Option<Leaf>,
        default: Duration,
    ) -> Duration {
        let Some((place, scalar)) = self.leaf(key, leaf) else { return default };
        let read = match scalar {
            Scalar::Text(text) => units::duration(text),
            Scalar::Integer(number @ 0..) => Err(format!(
                "a time needs a unit: write \"{number}s\" for seconds, \"{number}ms\" for \
                 milliseconds"
            )),
            _ => units::duration(""),
        };
        read.unwrap_or_else(|write| {
            place.wrong(scalar, write);
            default
        })
    }

    /// A size in bytes within `range`.
    pub(super) fn size(
        &self,
        key: &str,
        leaf: &Option<Leaf>,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        let Some((place, scalar)) = self.leaf(key, leaf) else { return default };
        let read = match scalar {
            Scalar::Text(text) => units::size(text),
            Scalar::Integer(bytes) => u64::try_from(*bytes)
                .ok()
                .filter(|bytes| i64::try_from(*bytes).is_ok())
                .ok_or_else(|| units::size("").err().unwrap_or_default()),
            _ => units::size(""),
        };
        let write = match read {
            Ok(bytes) if range.contains(&bytes) => return bytes,
            Ok(_) if *range.end() == BYTES_MAX => {
                format!("write at least {}", size_name(*range.start()))
            }
            Ok(_) => {
                let (low, high) = (size_name(*range.start()), size_name(*range.end()));
                format!("write a size from {low} to {high}")
            }
            Err(write) => write,
        };
        place.wrong(scalar, write);
        default
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &str,
        leaf: &Option<Leaf>,
        choices: &[(&str, T)],
        default: T,
    ) -> T {
        let Some((place, scalar)) = self.leaf(key, leaf) else { return default };
        let word = match scalar {
            Scalar::Text(text) => text.as_str(),
            _ => "",
        };
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == word) {
            return *value;
        }
        let choices = choices.iter().map(|(name, _)| *name);
        place.wrong(scalar, suggest(word, choices).replace('`', "\""));
        default
    }

    /// The elements of a list under `key`, each with its place; `None` when the key is missing.
    pub(super) fn list<'a>(
        &self,
        key: &str,
        leaf: &'a Option<Leaf>,
        write: &str,
    ) -> Option<Vec<(Self, &'a Scalar)>> {
        let (place, scalar) = self.leaf(key, leaf)?;
        let Scalar::List(list) = scalar else {
            place.wrong(scalar, write);
            return Some(Vec::new());
        };
        let items = list.iter().enumerate();
        Some(items.map(|(i, leaf)| (place.item(i, leaf.span()), leaf.get_ref())).collect())
    }

    /// The texts of a list under `key`; none when the key is missing.
    pub(super) fn texts<'a>(
        &self,
        key: &str,
        leaf: &'a Option<Leaf>,
        write: &str,
    ) -> Vec<(Self, &'a str)> {
        let items = self.list(key, leaf, write).unwrap_or_default();
        items.into_iter().filter_map(|(place, scalar)| text_item(place, scalar, write)).collect()
    }
}

/// A list element that should be text.
pub(super) fn text_item<'a, 'r>(
    place: Place<'r>,
    scalar: &'a Scalar,
    write: &str,
) -> Option<(Place<'r>, &'a str)> {
    match scalar {
        Scalar::Text(text) => Some((place, text.as_str())),
        other => {
            place.wrong(other, write);
            None
        }
    }
}

/// Highest size that has no bound of its own.
pub(super) const BYTES_MAX: u64 = i64::MAX as u64;

fn size_name(bytes: u64) -> String {
    match units::show_size(bytes) {
        plain if plain.bytes().all(|b| b.is_ascii_digit()) => plain,
        unit => format!("\"{unit}\""),
    }
}

/// A value as a message shows it.
struct Shown<'a>(&'a Scalar);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Scalar::Text(text) => f.write_str(&quoted(text)),
            Scalar::Integer(number) => number.fmt(f),
            Scalar::Float(number) => write!(f, "{number:?}"),
            Scalar::Boolean(value) => value.fmt(f),
            Scalar::List(_) => f.write_str("a list"),
            Scalar::Table => f.write_str("a table"),
        }
    }
}
