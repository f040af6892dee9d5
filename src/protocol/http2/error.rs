//! Error codes and why a connection is given up.

use std::{error::Error, fmt};

/// An error code (RFC 9113 section 7); peers may send any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

#[expect(missing_docs, reason = "each is the code of that name")]
impl Code {
    pub const NO_ERROR: Self = Self(0x0);
    pub const PROTOCOL_ERROR: Self = Self(0x1);
    pub const INTERNAL_ERROR: Self = Self(0x2);
    pub const FLOW_CONTROL_ERROR: Self = Self(0x3);
    pub const SETTINGS_TIMEOUT: Self = Self(0x4);
    pub const STREAM_CLOSED: Self = Self(0x5);
    pub const FRAME_SIZE_ERROR: Self = Self(0x6);
    pub const REFUSED_STREAM: Self = Self(0x7);
    pub const CANCEL: Self = Self(0x8);
    pub const COMPRESSION_ERROR: Self = Self(0x9);
    pub const CONNECT_ERROR: Self = Self(0xa);
    pub const ENHANCE_YOUR_CALM: Self = Self(0xb);
    pub const INADEQUATE_SECURITY: Self = Self(0xc);
    pub const HTTP_1_1_REQUIRED: Self = Self(0xd);
}

/// Defines [`Reason`] with its label and error code.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = ($label:literal, $code:ident),)*) => {
        /// Why a connection is given up; counted apart.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name in metrics and logs.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// What the peer is told.
            #[must_use]
            pub const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)* }
            }
        }
    };
}

reasons! {
    /// A frame where it must not be, or with contents that mean nothing.
    Protocol = ("protocol", PROTOCOL_ERROR),
    /// A frame of the wrong size.
    FrameSize = ("frame_size", FRAME_SIZE_ERROR),
    /// More data than the window allows, or a window beyond its maximum.
    FlowControl = ("flow_control", FLOW_CONTROL_ERROR),
    /// A frame on a stream that is over.
    StreamClosed = ("stream_closed", STREAM_CLOSED),
    /// A field block that cannot be decoded.
    Compression = ("compression", COMPRESSION_ERROR),
    /// Streams opened and reset too fast (CVE-2023-44487).
    ResetFlood = ("reset_flood", ENHANCE_YOUR_CALM),
    /// Streams made us reset them too fast (CVE-2025-8671).
    ErrorFlood = ("error_flood", ENHANCE_YOUR_CALM),
    /// A field block in too many frames (CVE-2024-27316), or too long even before it is decoded.
    ContinuationFlood = ("continuation_flood", ENHANCE_YOUR_CALM),
    /// Too many PING.
    PingFlood = ("ping_flood", ENHANCE_YOUR_CALM),
    /// Too many SETTINGS.
    SettingsFlood = ("settings_flood", ENHANCE_YOUR_CALM),
    /// Too many frames that carry nothing.
    EmptyFlood = ("empty_flood", ENHANCE_YOUR_CALM),
    /// Too many window updates of a few bytes.
    WindowFlood = ("window_flood", ENHANCE_YOUR_CALM),
    /// Too many frames that a sound peer has no reason to send.
    GlitchFlood = ("glitch_flood", ENHANCE_YOUR_CALM),
}

/// Why nothing more can be read from a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionError(pub Reason);

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP/2 connection error: {}", self.0.label())
    }
}

impl Error for ConnectionError {}

impl From<Reason> for ConnectionError {
    fn from(reason: Reason) -> Self {
        Self(reason)
    }
}
