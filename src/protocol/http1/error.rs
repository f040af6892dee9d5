//! What can be wrong with a message, apart from what each part of it adds.

use std::{error::Error, fmt};

/// What kind of wrong an error is; counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The bytes break the grammar, or contradict each other.
    Malformed,
    /// Well-formed, but not something this side does.
    Unsupported,
    /// Well-formed so far, but past a bound.
    Limit,
}

/// Defines a `Copy` error without payload: fault, status for the client, and text of each variant.
macro_rules! plain_error {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident = ($fault:ident, $status:literal, $text:literal),)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// The status a request with this error is answered with.
            pub const fn status(self) -> u16 {
                match self {
                    $(Self::$variant => $status,)+
                }
            }

            /// Malformed, unsupported, or past a bound.
            pub const fn fault(self) -> $crate::protocol::http1::Fault {
                match self {
                    $(Self::$variant => $crate::protocol::http1::Fault::$fault,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text,)+
                })
            }
        }

        impl std::error::Error for $name {}
    };
}
pub(super) use plain_error;

plain_error! {
    /// Why the lines of a head, of either direction, were refused.
    pub enum HeadError {
        /// CR without LF (RFC 9112 section 2.2).
        BareCr = (Malformed, 400, "CR without LF"),
        /// LF without CR; RFC 9112 section 2.2 allows it, smuggling lives on it.
        BareLf = (Malformed, 400, "LF without CR"),
        /// A NUL byte.
        Nul = (Malformed, 400, "NUL in the head"),
        /// More empty lines before the start line than are skipped.
        EmptyLines = (Malformed, 400, "empty lines before the start line"),
        /// The start line breaks its grammar.
        StartLine = (Malformed, 400, "malformed start line"),
        /// A method longer than any there is (RFC 9112 section 3).
        MethodTooLong = (Unsupported, 501, "method too long"),
        /// The version is not `HTTP/` digit `.` digit.
        Version = (Malformed, 400, "malformed HTTP version"),
        /// A version other than 1.0 and 1.1.
        UnsupportedVersion = (Unsupported, 505, "HTTP version is neither 1.0 nor 1.1"),
        /// A field name that is empty, no token, or set apart from its colon; or a folded line.
        FieldName = (Malformed, 400, "malformed field name"),
        /// A control character in a field value.
        FieldValue = (Malformed, 400, "control character in a field value"),
        /// The bytes end before the head does, or go on after it.
        Extent = (Malformed, 400, "the head does not end where it should"),
        /// The byte limit was reached within the start line.
        StartLineTooLong = (Limit, 414, "start line too long"),
        /// The byte limit was reached.
        TooLarge = (Limit, 431, "head too large"),
        /// More field lines than allowed.
        TooManyFields = (Limit, 431, "too many fields"),
        /// More `Connection` options than anyone needs.
        TooManyOptions = (Limit, 431, "too many connection options"),
    }
}

impl From<httparse::Error> for HeadError {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::HeaderName => Self::FieldName,
            httparse::Error::HeaderValue => Self::FieldValue,
            httparse::Error::TooManyHeaders => Self::TooManyFields,
            httparse::Error::Version => Self::Version,
            httparse::Error::NewLine | httparse::Error::Status | httparse::Error::Token => {
                Self::StartLine
            }
        }
    }
}

/// Writes `error` behind the name of the part it was found in.
pub(super) fn write_within(
    f: &mut fmt::Formatter<'_>,
    part: &str,
    error: &dyn Error,
) -> fmt::Result {
    write!(f, "{part}: {error}")
}
