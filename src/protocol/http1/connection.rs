//! The options of `Connection` (RFC 9110 section 7.6.1).

use super::{Field, FieldId, HeadError, Version, fields::list};

/// The most options, empty elements included: each forwarded field is looked up among them.
const OPTIONS_MAX: u8 = 64;

/// What a message's `Connection` fields say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionOptions {
    /// `close`
    pub close: bool,
    /// `keep-alive`
    pub keep_alive: bool,
    /// `upgrade`
    pub upgrade: bool,
    /// Any other option: fields that go no further may be nominated.
    pub others: bool,
    count: u8,
}

impl ConnectionOptions {
    /// Takes one field; those other than `Connection` are ignored.
    pub(super) fn note(&mut self, id: FieldId, value: &[u8]) -> Result<(), HeadError> {
        if id != FieldId::Connection {
            return Ok(());
        }
        for option in list(value) {
            self.count += 1;
            if self.count > OPTIONS_MAX {
                return Err(HeadError::TooManyOptions);
            }
            let is = |name: &str| option.eq_ignore_ascii_case(name.as_bytes());
            match option.len() {
                0 => {}
                5 if is("close") => self.close = true,
                7 if is("upgrade") => self.upgrade = true,
                10 if is("keep-alive") => self.keep_alive = true,
                _ => self.others = true,
            }
        }
        Ok(())
    }

    /// Whether the connection is to outlive the message (RFC 9112 section 9.3).
    pub(super) fn is_persistent(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    /// Whether `name` is nominated and may be dropped.
    pub(super) fn list(&self, fields: &[Field], head: &[u8], name: &[u8]) -> bool {
        if !self.others {
            return match name.len() {
                7 => self.upgrade && name.eq_ignore_ascii_case(b"upgrade"),
                10 => self.keep_alive && name.eq_ignore_ascii_case(b"keep-alive"),
                _ => false,
            };
        }
        let nominated = fields
            .iter()
            .filter(|field| field.id == FieldId::Connection)
            .flat_map(|field| list(field.value.of(head)))
            .any(|option| !option.is_empty() && option.eq_ignore_ascii_case(name));
        nominated && !FieldId::of(name).is_protected()
    }
}
