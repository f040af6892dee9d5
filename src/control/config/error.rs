//! What is wrong with a file, and where: positions, rendering, nearest names.

use std::fmt;
use std::ops::Range;

/// Problems shown at most; a file that is wrong everywhere is read from its beginning anyway.
const SHOWN_MAX: usize = 50;

/// Longest excerpt of a source line, in characters.
const EXCERPT_MAX: usize = 120;

/// Characters kept before the caret when a long line is cut.
const EXCERPT_LEAD: usize = 60;

/// Longest name that is compared with the known ones, in characters.
const NEAREST_MAX: usize = 64;

/// Everything that is wrong with one configuration file, in file order; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    errors: Vec<ConfigError>,
}

/// One problem and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file's name as it was given.
    pub file: String,
    /// Line and column from 1, in characters; `None` when the file could not be read.
    pub position: Option<Position>,
    /// What is wrong and what to write instead, in one line.
    pub message: String,
    excerpt: String,
}

/// A place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl ConfigErrors {
    /// The problems in file order.
    #[must_use]
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }

    /// One problem with the file as a whole.
    pub(super) fn file(name: &str, message: &str) -> Self {
        let error = ConfigError {
            file: one_line(name),
            position: None,
            message: one_line(message),
            excerpt: String::new(),
        };
        Self { errors: vec![error] }
    }

    /// Problems at byte ranges of `source`; `problems` must not be empty.
    pub(super) fn at(source: &Source<'_>, mut problems: Vec<(Range<usize>, String)>) -> Self {
        problems.sort_by_key(|(span, _)| span.start);
        problems.dedup();
        let render = |(span, message): (Range<usize>, String)| ConfigError {
            file: one_line(source.name),
            position: Some(source.position(span.start)),
            message: one_line(&message),
            excerpt: source.excerpt(&span),
        };
        Self { errors: problems.into_iter().map(render).collect() }
    }

    /// A warning about `span`, in one line.
    pub(super) fn warning(source: &Source<'_>, span: &Range<usize>, message: String) -> String {
        let Position { line, column } = source.position(span.start);
        format!("{}:{line}:{column}: warning: {}", one_line(source.name), one_line(&message))
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in self.errors.iter().take(SHOWN_MAX) {
            writeln!(f, "{error}")?;
        }
        match self.errors.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => writeln!(f, "and {more} more"),
        }
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, position, message, excerpt } = self;
        match position {
            Some(Position { line, column }) => {
                write!(f, "{file}:{line}:{column}: {message}\n{excerpt}")
            }
            None => write!(f, "{file}: {message}"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// A file's name and text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

impl<'a> Source<'a> {
    /// Line and column of a byte offset; past the end counts as the end.
    pub(super) fn position(&self, offset: usize) -> Position {
        let start = self.line_start(offset);
        let before = self.text.get(..start).unwrap_or_default();
        let line = self.text.get(start..self.floor(offset)).unwrap_or_default();
        Position {
            line: 1 + before.bytes().filter(|b| *b == b'\n').count(),
            column: 1 + line.chars().count(),
        }
    }

    fn floor(&self, offset: usize) -> usize {
        self.text.floor_char_boundary(offset)
    }

    fn line_start(&self, offset: usize) -> usize {
        let before = self.text.get(..self.floor(offset)).unwrap_or_default();
        before.rfind('\n').map_or(0, |newline| newline + 1)
    }

    fn line(&self, offset: usize) -> &'a str {
        let rest = self.text.get(self.line_start(offset)..).unwrap_or_default();
        rest.lines().next().unwrap_or_default()
    }

    /// The source line with carets under the part of `span` that stands on it.
    fn excerpt(&self, span: &Range<usize>) -> String {
        let Position { line: number, column } = self.position(span.start);
        let line = self.line(span.start);
        let lead = column - 1;
        let skip =
            if line.chars().count() > EXCERPT_MAX { lead.saturating_sub(EXCERPT_LEAD) } else { 0 };
        let spanned = self.text.get(self.floor(span.start)..self.floor(span.end));
        let spanned = spanned.unwrap_or_default().lines().next().unwrap_or_default();
        let shown: String = line.chars().skip(skip).take(EXCERPT_MAX).map(printable).collect();
        let carets = spanned.chars().count().min(EXCERPT_MAX - (lead - skip).min(EXCERPT_MAX));
        let gutter = number.to_string();
        format!(
            " {gutter} | {shown}\n {:width$} | {:pad$}{}",
            "",
            "",
            "^".repeat(carets.max(1)),
            width = gutter.len(),
            pad = lead - skip,
        )
    }
}

/// One column a character, so that the caret stays under its place and terminals are left alone.
fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(printable).collect()
}

/// A string of the file as a message shows it: quoted, escaped and of bounded length.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    let end = if text.chars().count() > SHOWN { "…" } else { "" };
    let start: String = text.chars().take(SHOWN).collect();
    format!("\"{}{end}\"", start.escape_debug().to_string().replace("\\'", "'"))
}

/// `did you mean …` with the nearest known name, or the list of what is known.
pub(super) fn suggest<'k>(word: &str, known: impl Iterator<Item = &'k str> + Clone) -> String {
    if let Some(name) = nearest(word, known.clone()) {
        return format!("did you mean `{name}`?");
    }
    let names: Vec<String> = known.take(40).map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [] => "there is none".to_owned(),
        [one] => format!("write {one}"),
        many => format!("write one of {}", many.join(", ")),
    }
}

/// The known name with the fewest edits from `word`, if they are few enough to be a slip or one
/// begins like the other.
pub(super) fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let length = word.chars().count();
    if length > NEAREST_MAX {
        return None;
    }
    let bound = length.div_ceil(3);
    let begins = |long: &str, short: &str| short.len() > 2 && long.starts_with(short);
    known
        .filter(|name| name.chars().count() <= NEAREST_MAX)
        .map(|name| (edits(word, name), name))
        .filter(|(edits, name)| *edits <= bound || begins(word, name) || begins(name, word))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, name)| name)
}

/// Edit distance (insert, delete, replace, swap of neighbours), letter case and `-`/`_` ignored.
fn edits(a: &str, b: &str) -> usize {
    let fold = |c: char| if c == '-' { '_' } else { c.to_ascii_lowercase() };
    let a: Vec<char> = a.chars().map(fold).collect();
    let b: Vec<char> = b.chars().map(fold).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "a = 1\n\tsmörgås = \"x\"\r\nlast";

    fn render(span: Range<usize>) -> String {
        let source = Source { name: "f.toml", text: TEXT };
        ConfigErrors::at(&source, vec![(span, "wrong".to_owned())]).to_string()
    }

    #[test]
    fn positions_count_characters() {
        let source = Source { name: "", text: TEXT };
        for (find, line, column) in [("a", 1, 1), ("smör", 2, 2), ("\"x", 2, 12), ("last", 3, 1)] {
            let offset = TEXT.find(find).unwrap();
            assert_eq!(source.position(offset), Position { line, column }, "{find}");
        }
        assert_eq!(source.position(TEXT.len()), Position { line: 3, column: 5 });
        assert_eq!(source.position(usize::MAX), Position { line: 3, column: 5 });
    }

    #[test]
    fn caret_stands_under_the_span() {
        let start = TEXT.find('"').unwrap();
        assert_eq!(
            render(start..start + 3),
            "f.toml:2:12: wrong\n 2 |  smörgås = \"x\"\n   |            ^^^\n"
        );
        assert_eq!(render(4..4), "f.toml:1:5: wrong\n 1 | a = 1\n   |     ^\n");
        // A span over several lines is marked on its first.
        assert_eq!(render(4..TEXT.len()), "f.toml:1:5: wrong\n 1 | a = 1\n   |     ^\n");
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let text = format!("{}#{}", "x".repeat(500), "y".repeat(500));
        let source = Source { name: "f", text: &text };
        let shown = ConfigErrors::at(&source, vec![(500..501, "m".to_owned())]).to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "f:1:501: m");
        assert_eq!(lines[1].find('#'), lines[2].find('^'));
        assert!(lines[1].len() < 140);
    }

    #[test]
    fn errors_are_sorted_bounded_and_one_line() {
        let source = Source { name: "f", text: "abc\n" };
        let many = (0..60).map(|i| (0..1, format!("m{i}\u{1b}[31m\n"))).rev().collect();
        let errors = ConfigErrors::at(&source, many);
        assert_eq!(errors.errors().len(), 60);
        let shown = errors.to_string();
        assert!(shown.ends_with("and 10 more\n"));
        assert!(!shown.contains('\u{1b}'));
        assert_eq!(shown.lines().count(), 151);
        let two = ConfigErrors::at(&source, vec![(2..3, "b".into()), (0..1, "a".into())]);
        assert_eq!(two.errors()[0].message, "a");
    }

    #[test]
    fn suggestions() {
        let known = ["listener", "bind", "backlog", "least_conn"];
        for (word, says) in [
            ("lisener", "did you mean `listener`?"),
            ("listners", "did you mean `listener`?"),
            ("Bind", "did you mean `bind`?"),
            ("bnid", "did you mean `bind`?"),
            ("least-conn", "did you mean `least_conn`?"),
            ("listeners_at", "did you mean `listener`?"),
            ("least", "did you mean `least_conn`?"),
            ("weight", "write one of `listener`, `bind`, `backlog`, `least_conn`"),
        ] {
            assert_eq!(suggest(word, known.into_iter()), says, "{word}");
        }
        assert_eq!(suggest("x", [].into_iter()), "there is none");
        assert_eq!(suggest("xyz", ["bind"].into_iter()), "write `bind`");
    }

    proptest! {
        #[test]
        fn any_span_of_any_text_renders(text in "(.|\n|\r|\t){0,80}", a in 0usize..120, b in 0usize..120) {
            let source = Source { name: "f", text: &text };
            let errors = ConfigErrors::at(&source, vec![(a..b, "m".to_owned())]);
            prop_assert_eq!(errors.to_string().matches('\n').count(), 3);
        }

        #[test]
        fn edits_are_a_distance(a in "[a-d]{0,8}", b in "[a-d]{0,8}") {
            prop_assert_eq!(edits(&a, &b), edits(&b, &a));
            prop_assert_eq!(edits(&a, &b) == 0, a == b);
            prop_assert!(edits(&a, &b) <= a.len().max(b.len()));
        }
    }
}
