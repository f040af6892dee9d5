//! Log lines for the operator, on standard error: one event a line, with its fields.

use std::io::Write as _;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::control::config::{Level, LogFormat};
use crate::control::events::Events;
use crate::l7::time::rfc3339_ms;
use crate::l7::worker::unix_ms;

/// Writes events at or above a level, and keeps those of normal work for `/status`. Copies are one
/// logger.
#[derive(Debug, Clone, Copy)]
pub struct Logger {
    shared: &'static Shared,
}

#[derive(Debug)]
struct Shared {
    level: AtomicU8,
    format: AtomicU8,
    events: Events,
}

impl Logger {
    /// In this format, from this level up.
    #[must_use]
    pub fn new(level: Level, format: LogFormat) -> Self {
        // One a process, for as long as that runs.
        let shared = Shared {
            level: AtomicU8::new(level as u8),
            format: AtomicU8::new(format as u8),
            events: Events::default(),
        };
        Self { shared: Box::leak(Box::new(shared)) }
    }

    /// The level.
    #[must_use]
    pub fn level(self) -> Level {
        let level = usize::from(self.shared.level.load(Ordering::Relaxed));
        Level::ALL.get(level).copied().unwrap_or(Level::Info)
    }

    /// Writes from this level up, from now on.
    pub fn set_level(self, level: Level) {
        self.shared.level.store(level as u8, Ordering::Relaxed);
    }

    /// Writes in this form from now on.
    pub fn set_format(self, format: LogFormat) {
        self.shared.format.store(format as u8, Ordering::Relaxed);
    }

    fn format(self) -> LogFormat {
        let json = LogFormat::Json as u8;
        let is_json = self.shared.format.load(Ordering::Relaxed) == json;
        if is_json { LogFormat::Json } else { LogFormat::Text }
    }

    /// The last events.
    #[must_use]
    pub fn events(self) -> &'static Events {
        &self.shared.events
    }

    /// Logs what stops a service or loses requests.
    pub fn error(&self, message: &str, fields: &[(&str, &str)]) {
        self.log(Level::Error, message, fields);
    }

    /// Logs what may.
    pub fn warn(&self, message: &str, fields: &[(&str, &str)]) {
        self.log(Level::Warn, message, fields);
    }

    /// Logs normal work.
    pub fn info(&self, message: &str, fields: &[(&str, &str)]) {
        self.log(Level::Info, message, fields);
    }

    /// Logs what helps to find a fault.
    pub fn debug(&self, message: &str, fields: &[(&str, &str)]) {
        self.log(Level::Debug, message, fields);
    }

    fn log(&self, level: Level, message: &str, fields: &[(&str, &str)]) {
        let now = unix_ms();
        if level <= Level::Info {
            self.shared.events.add(now, level, message, fields);
        }
        if level > self.level() {
            return;
        }
        let line = render(self.format(), now, level, message, fields);
        // Nobody is left to tell when standard error is gone.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
}

fn render(
    format: LogFormat,
    unix_ms: u64,
    level: Level,
    message: &str,
    fields: &[(&str, &str)],
) -> String {
    let time = rfc3339_ms(unix_ms);
    let time = String::from_utf8_lossy(&time);
    let level = level.name();
    match format {
        LogFormat::Text => {
            let mut line = format!("{time} {level:5} {message}");
            for (key, value) in fields {
                let plain = !value.is_empty()
                    && !value.contains(|c: char| c.is_whitespace() || c == '"' || c.is_control());
                if plain {
                    line.push_str(&format!(" {key}={value}"));
                } else {
                    line.push_str(&format!(" {key}={value:?}"));
                }
            }
            line.push('\n');
            line
        }
        LogFormat::Json => {
            let mut object = serde_json::Map::new();
            object.insert("time".into(), time.into());
            object.insert("level".into(), level.into());
            object.insert("message".into(), message.into());
            for (key, value) in fields {
                object.insert((*key).into(), (*value).into());
            }
            format!("{}\n", serde_json::Value::Object(object))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_quotes_what_would_not_read_back() {
        let fields = [("upstream", "api"), ("reason", "no route to host"), ("empty", "")];
        let line = render(LogFormat::Text, 0, Level::Warn, "server is out", &fields);
        let expected = "1970-01-01T00:00:00.000Z warn  server is out upstream=api \
                        reason=\"no route to host\" empty=\"\"\n";
        assert_eq!(line, expected);
    }

    #[test]
    fn a_line_break_in_a_value_stays_inside_the_line() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let line = render(format, 0, Level::Info, "m", &[("k", "a\nb")]);
            assert_eq!(line.matches('\n').count(), 1, "{line}");
        }
    }

    #[test]
    fn json_is_an_object_a_line() {
        let line = render(LogFormat::Json, 0, Level::Error, "m", &[("k", "v\"")]);
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&value["level"], &value["k"]), (&"error".into(), &"v\"".into()));
    }
}
