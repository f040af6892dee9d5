//! Header values with variables, in nginx's notation: `$host`, `${host}`, `$$`.

use std::fmt::{self, Write as _};

/// A value that may refer to the request: compiled once, rendered without allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Variable(Variable),
}

/// What a template may refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    /// `$remote_addr`: the client's address, after PROXY protocol and `trusted_proxies`.
    RemoteAddr,
    /// `$remote_port`
    RemotePort,
    /// `$host`: the request's host in lower case, without port.
    Host,
    /// `$http_host`: the `Host` field as it came.
    HttpHost,
    /// `$scheme`: `http` or `https`.
    Scheme,
    /// `$request_id`: 32 hexadecimal digits, or the trusted peer's own.
    RequestId,
    /// `$request_method`
    RequestMethod,
    /// `$request_uri`: normalised path and query.
    RequestUri,
    /// `$uri`: normalised path.
    Uri,
    /// `$query_string`: the query without `?`, empty when there is none.
    QueryString,
    /// `$server_addr`: the address the client connected to.
    ServerAddr,
    /// `$server_port`
    ServerPort,
    /// `$upstream_addr`: the server that was tried last; empty before the first.
    UpstreamAddr,
    /// `$ssl_protocol`: `TLSv1.2` or `TLSv1.3`; this and what follows is empty without TLS.
    SslProtocol,
    /// `$ssl_cipher`: the cipher suite's registered name.
    SslCipher,
    /// `$ssl_server_name`: the name the client asked for in the handshake.
    SslServerName,
    /// `$ssl_session_reused`: `r` for a resumed session, else `.`.
    SslSessionReused,
    /// `$ssl_client_s_dn`: subject of the client's certificate, which was verified.
    SslClientSubject,
    /// `$http_NAME`: the first value of a request header field; lower case, `-` for `_`.
    Header(String),
}

/// Supplies the values of variables when a template is rendered.
pub trait Values {
    /// Appends the variable's value to `out`, or nothing when it has none.
    fn append(&self, variable: &Variable, out: &mut Vec<u8>);
}

/// Why a template was refused; offsets are bytes from its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateError {
    /// No variable has this name.
    UnknownVariable {
        /// The name as written, without `$` and braces.
        name: String,
        /// The known name nearest to it, when one is near.
        nearest: Option<&'static str>,
    },
    /// A `$` is followed by neither a name, `{name}` nor `$`.
    MissingName {
        /// Where the `$` stands.
        offset: usize,
    },
    /// A `${` has no `}` behind its name.
    Unclosed {
        /// Where the `$` stands.
        offset: usize,
    },
    /// A control character other than a tab, which no header value may have (RFC 9110 section 5.5).
    ControlCharacter {
        /// Where it stands.
        offset: usize,
    },
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownVariable { name, nearest: Some(nearest) } => {
                write!(f, "unknown variable ${name}; did you mean ${nearest}?")
            }
            Self::UnknownVariable { name, nearest: None } => {
                write!(f, "unknown variable ${name}; known are ")?;
                for (known, _) in NAMED {
                    write!(f, "${known}, ")?;
                }
                write!(f, "${HEADER_PREFIX}NAME")
            }
            Self::MissingName { offset } => {
                write!(f, "$ at byte {offset} has no variable name; write $$ for a dollar sign")
            }
            Self::Unclosed { offset } => write!(f, "${{ at byte {offset} has no closing }}"),
            Self::ControlCharacter { offset } => {
                write!(f, "control character at byte {offset}")
            }
        }
    }
}

impl std::error::Error for TemplateError {}

const HEADER_PREFIX: &str = "http_";

const NAMED: [(&str, Variable); 18] = [
    ("remote_addr", Variable::RemoteAddr),
    ("remote_port", Variable::RemotePort),
    ("host", Variable::Host),
    ("http_host", Variable::HttpHost),
    ("scheme", Variable::Scheme),
    ("request_id", Variable::RequestId),
    ("request_method", Variable::RequestMethod),
    ("request_uri", Variable::RequestUri),
    ("uri", Variable::Uri),
    ("query_string", Variable::QueryString),
    ("server_addr", Variable::ServerAddr),
    ("server_port", Variable::ServerPort),
    ("upstream_addr", Variable::UpstreamAddr),
    ("ssl_protocol", Variable::SslProtocol),
    ("ssl_cipher", Variable::SslCipher),
    ("ssl_server_name", Variable::SslServerName),
    ("ssl_session_reused", Variable::SslSessionReused),
    ("ssl_client_s_dn", Variable::SslClientSubject),
];

impl Template {
    /// Compiles `source`. Names are case-insensitive, as in nginx.
    ///
    /// # Errors
    /// [`TemplateError`] for an unknown variable, a `$` without a name, an unclosed brace and a
    /// control character.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        let is_control = |byte: u8| byte.is_ascii_control() && byte != b'\t';
        if let Some(offset) = source.bytes().position(is_control) {
            return Err(TemplateError::ControlCharacter { offset });
        }
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = source;
        while let Some((before, after)) = rest.split_once('$') {
            literal.push_str(before);
            if let Some(behind) = after.strip_prefix('$') {
                literal.push('$');
                rest = behind;
                continue;
            }
            let offset = source.len() - after.len() - 1;
            let (name, behind) = split_name(after, offset)?;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(Part::Variable(Variable::from_name(name)?));
            rest = behind;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self { parts })
    }

    /// A template of `text` as it stands: `$` has no meaning in it.
    ///
    /// Nothing is checked; for text from outside use [`Template::parse`].
    #[must_use]
    pub fn literal(text: &str) -> Self {
        let parts = if text.is_empty() { vec![] } else { vec![Part::Literal(text.to_owned())] };
        Self { parts }
    }

    /// True when it has no variable.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.as_literal().is_some()
    }

    /// The text of a template without variables.
    #[must_use]
    pub fn as_literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// The variables it refers to, in order of appearance.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.parts.iter().filter_map(|part| match part {
            Part::Variable(variable) => Some(variable),
            Part::Literal(_) => None,
        })
    }

    /// Appends the text with the variables' values in place; allocates only if `out` must grow.
    pub fn render(&self, values: &impl Values, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Part::Variable(variable) => values.append(variable, out),
            }
        }
    }
}

/// Splits `$`'s name, braced or not, from what follows it; `offset` is where the `$` stands.
fn split_name(after: &str, offset: usize) -> Result<(&str, &str), TemplateError> {
    let braced = after.strip_prefix('{');
    let text = braced.unwrap_or(after);
    let end = text.bytes().position(|byte| !is_name_byte(byte)).unwrap_or(text.len());
    let (name, behind) = text.split_at(end);
    if braced.is_some() {
        let behind = behind.strip_prefix('}').ok_or(TemplateError::Unclosed { offset })?;
        if !name.is_empty() {
            return Ok((name, behind));
        }
    }
    if name.is_empty() { Err(TemplateError::MissingName { offset }) } else { Ok((name, behind)) }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

impl Variable {
    fn from_name(written: &str) -> Result<Self, TemplateError> {
        let name = written.to_ascii_lowercase();
        if let Some((_, variable)) = NAMED.iter().find(|(known, _)| *known == name) {
            return Ok(variable.clone());
        }
        match name.strip_prefix(HEADER_PREFIX) {
            Some(field) if !field.is_empty() => Ok(Self::Header(field.replace('_', "-"))),
            _ => Err(TemplateError::UnknownVariable {
                name: written.to_owned(),
                nearest: nearest_name(&name),
            }),
        }
    }
}

/// The canonical source: parsing it gives an equal template.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.parts.iter().enumerate() {
            match part {
                Part::Literal(text) => write_escaped(f, text)?,
                Part::Variable(variable) => {
                    let name_would_go_on = match self.parts.get(index + 1) {
                        Some(Part::Literal(text)) => text.bytes().next().is_some_and(is_name_byte),
                        _ => false,
                    };
                    if name_would_go_on {
                        write!(f, "${{{variable}}}")?;
                    } else {
                        write!(f, "${variable}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn write_escaped(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for (index, piece) in text.split('$').enumerate() {
        if index > 0 {
            f.write_str("$$")?;
        }
        f.write_str(piece)?;
    }
    Ok(())
}

/// The variable's name, without `$`.
impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Header(field) = self {
            f.write_str(HEADER_PREFIX)?;
            return field
                .chars()
                .try_for_each(|letter| f.write_char(if letter == '-' { '_' } else { letter }));
        }
        let named = NAMED.iter().find(|(_, variable)| variable == self);
        named.map_or(Ok(()), |(name, _)| f.write_str(name))
    }
}

/// The known name with the fewest edits from `name`, if those are at most a third of its letters, or two.
fn nearest_name(name: &str) -> Option<&'static str> {
    let within = |(distance, known): &(usize, &str)| *distance <= (known.len() / 3).max(2);
    NAMED
        .iter()
        .map(|(known, _)| (edit_distance(name, known), *known))
        .filter(within)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// Levenshtein's distance in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (1..=b.len()).collect();
    let mut distance = b.len();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        distance = i + 1;
        for (cell, y) in row.iter_mut().zip(b.bytes()) {
            let above = *cell;
            distance = (diagonal + usize::from(x != y)).min(above + 1).min(distance + 1);
            diagonal = above;
            *cell = distance;
        }
    }
    distance
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Named;

    impl Values for Named {
        fn append(&self, variable: &Variable, out: &mut Vec<u8>) {
            out.extend_from_slice(format!("<{variable}>").as_bytes());
        }
    }

    fn rendered(source: &str) -> String {
        let mut out = Vec::new();
        Template::parse(source).unwrap().render(&Named, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn renders_every_notation() {
        for (source, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("$host", "<host>"),
            ("${host}", "<host>"),
            ("${host}name", "<host>name"),
            ("$host-name", "<host>-name"),
            ("https://$host$request_uri", "https://<host><request_uri>"),
            ("$$host", "$host"),
            ("$$$host", "$<host>"),
            ("5$$", "5$"),
            ("$HOST", "<host>"),
            ("a${uri}b$scheme", "a<uri>b<scheme>"),
            ("{$uri}", "{<uri>}"),
            ("tab\tstays é", "tab\tstays é"),
        ] {
            assert_eq!(rendered(source), expected, "{source}");
        }
    }

    #[test]
    fn header_variables_become_field_names() {
        for (source, expected) in [
            ("$http_foo_bar", Variable::Header("foo-bar".into())),
            ("$http_X_Beta", Variable::Header("x-beta".into())),
            ("${http_host}", Variable::HttpHost),
            ("$http_hosts", Variable::Header("hosts".into())),
        ] {
            let template = Template::parse(source).unwrap();
            assert_eq!(template.variables().collect::<Vec<_>>(), [&expected], "{source}");
        }
    }

    #[test]
    fn every_name_is_known_and_displayed() {
        for (name, variable) in NAMED {
            assert_eq!(Variable::from_name(name), Ok(variable.clone()));
            assert_eq!(variable.to_string(), name);
        }
    }

    #[test]
    fn refuses_what_is_malformed() {
        use TemplateError::{ControlCharacter, MissingName, Unclosed};
        for (source, expected) in [
            ("a$", MissingName { offset: 1 }),
            ("$-", MissingName { offset: 0 }),
            ("$$$", MissingName { offset: 2 }),
            ("${}", MissingName { offset: 0 }),
            ("x${host", Unclosed { offset: 1 }),
            ("${ho st}", Unclosed { offset: 0 }),
            ("${", Unclosed { offset: 0 }),
            ("a\r\nb", ControlCharacter { offset: 1 }),
            ("a\n", ControlCharacter { offset: 1 }),
            ("\0", ControlCharacter { offset: 0 }),
            ("\x7f", ControlCharacter { offset: 0 }),
        ] {
            assert_eq!(Template::parse(source), Err(expected), "{source:?}");
        }
    }

    #[test]
    fn unknown_names_get_the_nearest_or_all() {
        let message = |source| Template::parse(source).unwrap_err().to_string();
        assert_eq!(message("$hots"), "unknown variable $hots; did you mean $host?");
        assert_eq!(
            message("${remote_adr}"),
            "unknown variable $remote_adr; did you mean $remote_addr?"
        );
        assert_eq!(
            message("$Request_url"),
            "unknown variable $Request_url; did you mean $request_uri?"
        );
        for far in ["$connection_requests", "$1", "$http_"] {
            let text = message(far);
            assert!(text.contains("$remote_addr, $remote_port"), "{text}");
            assert!(text.ends_with("$ssl_client_s_dn, $http_NAME"), "{text}");
        }
    }

    #[test]
    fn literals_are_not_interpreted() {
        let template = Template::literal("$host");
        assert_eq!(template.as_literal(), Some("$host"));
        assert_eq!(template.to_string(), "$$host");
        assert!(template.is_literal());
        assert!(Template::literal("").is_literal());
        assert!(Template::parse("a$$b").unwrap().is_literal());
        assert!(!Template::parse("$host").unwrap().is_literal());
    }

    #[test]
    fn distance_counts_edits() {
        for (a, b, expected) in
            [("", "", 0), ("", "ab", 2), ("ab", "", 2), ("kitten", "sitting", 3), ("uri", "uri", 0)]
        {
            assert_eq!(edit_distance(a, b), expected, "{a} {b}");
        }
    }

    proptest! {
        #[test]
        fn display_parses_to_an_equal_template(
            pieces in proptest::collection::vec("[$][$]|[$](host|uri)|[$][{](http_a_b|scheme)[}]|[a_{}. ]", 0..8)
        ) {
            let source: String = pieces.concat();
            if let Ok(template) = Template::parse(&source) {
                prop_assert_eq!(Template::parse(&template.to_string()), Ok(template));
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused(source in "\\PC*|[$a{}_]*") {
            if let Ok(template) = Template::parse(&source) {
                let again = template.to_string();
                prop_assert_eq!(Template::parse(&again).map(|t| t.to_string()), Ok(again));
            }
        }

        #[test]
        fn a_literal_comes_back_through_its_display(text in "[$a{}]*") {
            let template = Template::literal(&text);
            prop_assert_eq!(Template::parse(&template.to_string()), Ok(template));
        }
    }
}
