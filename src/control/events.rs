//! The last log lines, kept for `/status`: a bounded list, and one of VRRP transitions that others do
//! not crowd out.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::control::config::Level;
use crate::l7::time::rfc3339_ms;

/// Events kept.
const RECENT_MAX: usize = 200;
/// VRRP transitions kept.
const TRANSITIONS_MAX: usize = 50;
/// Fields of an event that are kept, and characters of each.
const FIELDS_MAX: usize = 8;
const TEXT_MAX: usize = 300;
/// What log lines about a changed role say.
pub const TRANSITION: &str = "vrrp transition";

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// How bad it is.
    pub level: Level,
    /// What happened.
    pub message: String,
    /// To whom.
    pub fields: Vec<(String, String)>,
}

impl Event {
    /// As JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let fields = self.fields.iter().map(|(key, value)| (key.clone(), json!(value)));
        json!({
            "time": String::from_utf8_lossy(&rfc3339_ms(self.unix_ms)),
            "level": self.level.name(),
            "message": self.message,
            "fields": fields.collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// The events of the process.
#[derive(Debug, Default)]
pub struct Events {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    recent: VecDeque<Event>,
    transitions: VecDeque<Event>,
}

impl Events {
    /// Keeps one.
    pub fn add(&self, unix_ms: u64, level: Level, message: &str, fields: &[(&str, &str)]) {
        let short = |text: &str| text.chars().take(TEXT_MAX).collect::<String>();
        let fields = fields.iter().take(FIELDS_MAX);
        let event = Event {
            unix_ms,
            level,
            message: short(message),
            fields: fields.map(|(key, value)| (short(key), short(value))).collect(),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if message == TRANSITION {
            push(&mut kept.transitions, event.clone(), TRANSITIONS_MAX);
        }
        push(&mut kept.recent, event, RECENT_MAX);
    }

    /// The newest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Event> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.recent.iter().rev().cloned().collect()
    }

    /// VRRP transitions, the newest first.
    #[must_use]
    pub fn transitions(&self) -> Vec<Event> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.transitions.iter().rev().cloned().collect()
    }
}

fn push(list: &mut VecDeque<Event>, event: Event, most: usize) {
    if list.len() >= most {
        list.pop_front();
    }
    list.push_back(event);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_and_transitions_stay() {
        let events = Events::default();
        events.add(1, Level::Warn, TRANSITION, &[("instance", "a")]);
        for n in 0..1000 {
            events.add(n, Level::Info, "other", &[("n", &n.to_string())]);
        }
        let recent = events.recent();
        assert_eq!((recent.len(), recent[0].unix_ms), (RECENT_MAX, 999));
        assert_eq!(events.transitions().len(), 1);
        assert_eq!(events.transitions()[0].json()["fields"]["instance"], "a");
    }

    #[test]
    fn long_ones_are_cut() {
        let events = Events::default();
        let (text, many) = ("ä".repeat(5000), [("key", "value"); 50]);
        events.add(1, Level::Info, &text, &many);
        let event = events.recent().remove(0);
        assert_eq!((event.message.chars().count(), event.fields.len()), (TEXT_MAX, FIELDS_MAX));
    }
}
