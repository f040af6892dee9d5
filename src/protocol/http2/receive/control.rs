//! Frames that carry no message: PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE.

use super::{Code, Connection, Event, Header, Outcome, Rate, Reason, Role, WINDOW_MAX, frame};

impl Connection {
    pub(super) fn priority(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        self.count(Rate::Glitch, now)?; // deprecated; a browser sends a few at the start
        if header.stream == 0 {
            return Err(Reason::Protocol);
        }
        let Some(on) = frame::number(payload).filter(|_| payload.len() == 5) else {
            return self.stream_fault(header.stream, Code::FRAME_SIZE_ERROR, now);
        };
        if on & 0x7fff_ffff == header.stream {
            return self.stream_fault(header.stream, Code::PROTOCOL_ERROR, now);
        }
        Ok(None)
    }

    /// Resets a stream that may not be open.
    pub(super) fn stream_fault(&mut self, id: u32, code: Code, now: u64) -> Outcome {
        if self.streams.get(id).is_some() {
            return self.fault(id, code, now);
        }
        self.count(Rate::Error, now)?;
        self.refuse(id, code);
        Ok(None)
    }

    pub(super) fn peer_reset(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        let Some(code) = frame::number(payload).filter(|_| payload.len() == 4) else {
            return Err(Reason::FrameSize);
        };
        self.check_not_idle(header.stream)?;
        // A server that refuses streams may have reason to refuse many.
        if self.role == Role::Server {
            let was_there = self.streams.get(header.stream).is_some();
            self.count(if was_there { Rate::Reset } else { Rate::Glitch }, now)?;
        }
        let Some(stream) = self.streams.remove(header.stream) else { return Ok(None) };
        self.release_connection(stream.untaken);
        Ok(Some(Event::Reset { id: header.stream, code: Code(code), fault: false }))
    }

    pub(super) fn settings(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        self.count(Rate::Settings, now)?;
        if header.stream != 0 {
            return Err(Reason::Protocol);
        }
        if header.has(frame::ACK) {
            return if payload.is_empty() { Ok(None) } else { Err(Reason::FrameSize) };
        }
        self.receive.begun = true;
        let before = i64::from(self.remote.window);
        self.remote.apply(payload, self.role)?;
        let by = i64::from(self.remote.window) - before;
        if !self.streams.iter_mut().all(|stream| stream.widen(by)) {
            return Err(Reason::FlowControl);
        }
        self.resize_encoder();
        frame::push_header(&mut self.output, 0, frame::SETTINGS, frame::ACK, 0);
        Ok(Some(Event::Window { id: 0 }))
    }

    pub(super) fn peer_ping(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        let Some(&payload) = payload.first_chunk::<8>().filter(|_| payload.len() == 8) else {
            return Err(Reason::FrameSize);
        };
        if header.stream != 0 {
            return Err(Reason::Protocol);
        }
        if header.has(frame::ACK) {
            self.count(Rate::Glitch, now)?;
            return Ok(Some(Event::Pong));
        }
        if self.pings_earned > 0 {
            self.pings_earned -= 1;
        } else {
            self.count(Rate::Ping, now)?;
        }
        frame::push_ping(&mut self.output, frame::ACK, payload);
        Ok(None)
    }

    pub(super) fn peer_goes_away(&mut self, header: Header, payload: &[u8]) -> Outcome {
        if header.stream != 0 {
            return Err(Reason::Protocol);
        }
        let Some(last) = frame::number(payload).filter(|_| payload.len() >= 8) else {
            return Err(Reason::FrameSize);
        };
        let last = (last & 0x7fff_ffff).min(self.peer_last.unwrap_or(u32::MAX));
        self.peer_last = Some(last);
        Ok(Some(Event::GoAway { last }))
    }

    pub(super) fn window_update(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        const SMALL: i64 = 256;
        let Some(by) = frame::number(payload).filter(|_| payload.len() == 4) else {
            return Err(Reason::FrameSize);
        };
        let by = i64::from(by & 0x7fff_ffff);
        let id = header.stream;
        if by < SMALL && self.small_updates > 0 {
            self.small_updates -= 1;
        } else if by < SMALL {
            self.count(Rate::SmallUpdate, now)?;
        }
        if id == 0 {
            self.send_window += by;
            if by == 0 {
                return Err(Reason::Protocol);
            }
            let within = self.send_window <= WINDOW_MAX;
            return if within {
                Ok(Some(Event::Window { id: 0 }))
            } else {
                Err(Reason::FlowControl)
            };
        }
        let Some(stream) = self.streams.get_mut(id) else {
            self.check_not_idle(id)?;
            return Ok(None); // it may have been under way
        };
        if by == 0 {
            return self.fault(id, Code::PROTOCOL_ERROR, now);
        }
        if !stream.widen(by) {
            return self.fault(id, Code::FLOW_CONTROL_ERROR, now);
        }
        Ok(Some(Event::Window { id }))
    }
}
