//! Text into raw tables, with every unknown key reported instead of the first alone.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::suggest;
use super::place::{Report, Reported};
use super::raw::File;

/// Unknown keys reported at most; each costs a pass over the file.
const UNKNOWN_MAX: usize = 20;

/// Parses the text; unknown keys are noted and left out of the result.
pub(super) fn read(report: &Report<'_>, text: &str) -> Result<File, Reported> {
    let (mut tree, errors) = DeTable::parse_recoverable(text);
    let mut failed = None;
    for error in first_of_each_line(text, &errors) {
        let span = error.span().unwrap_or_default();
        failed = Some(report.problem(span, format!("not TOML: {}", error.message())));
    }
    if let Some(reported) = failed {
        return Err(reported);
    }
    dates(report, tree.get_mut());
    for _ in 0..UNKNOWN_MAX {
        let error = match File::deserialize(toml::Deserializer::from(tree.clone())) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        let span = error.span().unwrap_or_default();
        let Some(key) = remove(tree.get_mut(), &span) else {
            return Err(report.problem(span, error.message().to_owned()));
        };
        failed = Some(report.problem(span, unknown(&key, error.message())));
    }
    Err(failed.unwrap_or_else(|| report.problem(0..0, "too many unknown keys".to_owned())))
}

/// One fault often causes more on its line; the first is the one to mend.
fn first_of_each_line<'e>(
    text: &str,
    errors: &'e [toml::de::Error],
) -> impl Iterator<Item = &'e toml::de::Error> {
    let mut last = None;
    errors.iter().filter(move |error| {
        let start = text.floor_char_boundary(error.span().unwrap_or_default().start);
        let line = text.get(..start).unwrap_or_default().rfind('\n');
        last.replace(line) != Some(line)
    })
}

/// The message for an unknown key; serde's own ends with the list of those that are known.
fn unknown(key: &str, message: &str) -> String {
    let list = message.rsplit_once("`, expected ").map_or("", |(_, list)| list);
    let known = list.split('`').skip(1).step_by(2);
    format!("unknown key `{}`: {}", key.escape_debug(), suggest(key, known))
}

/// Takes the key at `span` out of the tree.
fn remove(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let found = table.keys().find(|key| key.span() == *span).cloned();
    if let Some(key) = found {
        return table.remove(&key).map(|_| key.into_inner().into_owned());
    }
    table.iter_mut().find_map(|(_, value)| remove_within(value, span))
}

fn remove_within(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>) -> Option<String> {
    match value.get_mut() {
        DeValue::Table(table) => remove(table, span),
        DeValue::Array(list) => list.iter_mut().find_map(|item| remove_within(item, span)),
        _ => None,
    }
}

/// TOML has dates, which serde sees as tables of a private key; no key here takes one.
fn dates(report: &Report<'_>, table: &mut DeTable<'_>) {
    for (_, value) in table.iter_mut() {
        dates_within(report, value);
    }
}

fn dates_within(report: &Report<'_>, value: &mut Spanned<DeValue<'_>>) {
    let span = value.span();
    match value.get_mut() {
        DeValue::Table(table) => dates(report, table),
        DeValue::Array(list) => list.iter_mut().for_each(|item| dates_within(report, item)),
        DeValue::Datetime(date) => {
            let text = date.to_string();
            report.problem(span, format!("a date stands here: write \"{text}\" for text"));
            *value.get_mut() = DeValue::String(text.into());
        }
        _ => {}
    }
}
