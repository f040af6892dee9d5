//! SETTINGS (RFC 9113 section 6.5, RFC 8441 section 3).

use super::frame::{self, PAYLOAD_MAX};
use super::{Limits, Reason, Role};

const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;
const ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// The largest window (RFC 9113 section 6.9.1).
pub(super) const WINDOW_MAX: i64 = 0x7fff_ffff;
/// Every window before SETTINGS say otherwise.
pub(super) const WINDOW_DEFAULT: u32 = 65_535;
/// The dynamic table that our decoder keeps, which is the default.
pub(super) const TABLE_SIZE: usize = 4096;

/// What the peer has told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remote {
    pub(super) table_size: u32,
    pub(super) streams: u32,
    pub(super) window: u32,
    pub(super) connect_protocol: bool,
}

impl Default for Remote {
    fn default() -> Self {
        // RFC 9113 recommends at least 100 streams; until SETTINGS come nothing more is presumed.
        Self { table_size: 4096, streams: 100, window: WINDOW_DEFAULT, connect_protocol: false }
    }
}

impl Remote {
    /// Takes over a payload; unknown settings are ignored.
    pub(super) fn apply(&mut self, payload: &[u8], role: Role) -> Result<(), Reason> {
        let (settings, []) = payload.as_chunks::<6>() else { return Err(Reason::FrameSize) };
        for &[k0, k1, v0, v1, v2, v3] in settings {
            let value = u32::from_be_bytes([v0, v1, v2, v3]);
            match u16::from_be_bytes([k0, k1]) {
                HEADER_TABLE_SIZE => self.table_size = value,
                // Only a client has a say in it.
                ENABLE_PUSH if value > 1 || (value == 1 && role == Role::Client) => {
                    return Err(Reason::Protocol);
                }
                MAX_CONCURRENT_STREAMS => self.streams = value,
                INITIAL_WINDOW_SIZE if i64::from(value) > WINDOW_MAX => {
                    return Err(Reason::FlowControl);
                }
                INITIAL_WINDOW_SIZE => self.window = value,
                MAX_FRAME_SIZE if !(16_384..=0xff_ffff).contains(&value) => {
                    return Err(Reason::Protocol);
                }
                ENABLE_CONNECT_PROTOCOL if value > 1 || (value == 0 && self.connect_protocol) => {
                    return Err(Reason::Protocol);
                }
                ENABLE_CONNECT_PROTOCOL => self.connect_protocol = value == 1,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Appends our SETTINGS, and the update that widens the connection's window.
pub(super) fn push_local(out: &mut Vec<u8>, role: Role, limits: &Limits) {
    let head_bytes = u32::try_from(limits.head_bytes).unwrap_or(u32::MAX);
    let mut settings =
        vec![(INITIAL_WINDOW_SIZE, limits.stream_window), (MAX_HEADER_LIST_SIZE, head_bytes)];
    match role {
        Role::Server => {
            settings.push((MAX_CONCURRENT_STREAMS, limits.streams));
            settings.push((ENABLE_CONNECT_PROTOCOL, 1));
        }
        Role::Client => settings.push((ENABLE_PUSH, 0)),
    }
    debug_assert!(settings.len() * 6 <= PAYLOAD_MAX);
    frame::push_header(out, settings.len() * 6, frame::SETTINGS, 0, 0);
    for (key, value) in settings {
        out.extend_from_slice(&key.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
    if let Some(wider) = limits.connection_window.checked_sub(WINDOW_DEFAULT).filter(|&by| by > 0) {
        frame::push_window_update(out, 0, wider);
    }
}
