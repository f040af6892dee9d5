//! DATA: bodies and what flow control is owed for them.

use super::{At, Code, Connection, Data, Event, Header, Outcome, Rate, Reason, frame};

impl Connection {
    pub(super) fn begin_data(&mut self, header: Header, now: u64) -> Outcome {
        let id = header.stream;
        let len = i64::try_from(header.len).unwrap_or(i64::MAX);
        self.receive_window -= len;
        if self.receive_window < 0 {
            return Err(Reason::FlowControl);
        }
        if header.has(frame::PADDED) && header.len == 0 {
            return Err(Reason::FrameSize);
        }
        let end = header.has(frame::END_STREAM);
        if header.len == 0 && !end {
            self.count(Rate::Empty, now)?;
        }
        if header.len > 0 {
            self.earn_ping();
        }
        let padded = header.has(frame::PADDED);
        let mut data = Data { id, body: header.len, padding: 0, padded, end, dropped: false };
        let fault = match self.streams.get_mut(id) {
            Some(stream) if stream.received_end => Some(Code::STREAM_CLOSED),
            Some(stream) if !stream.has_head => Some(Code::PROTOCOL_ERROR),
            Some(stream) => {
                stream.receive_window -= len;
                (stream.receive_window < 0).then_some(Code::FLOW_CONTROL_ERROR)
            }
            None => {
                self.check_closed(id)?;
                data.dropped = true;
                None
            }
        };
        data.dropped |= fault.is_some();
        self.receive.at = At::Data(data);
        match fault {
            Some(code) => self.fault(id, code, now),
            None => Ok(None),
        }
    }

    pub(super) fn data(
        &mut self,
        rest: &[u8],
        offset: usize,
        mut data: Data,
        now: u64,
    ) -> Result<(usize, Option<Event>), Reason> {
        if data.padded {
            let Some(&padding) = rest.first() else { return Ok((0, None)) };
            data.padded = false;
            data.padding = usize::from(padding);
            data.body = (data.body - 1).checked_sub(data.padding).ok_or(Reason::Protocol)?;
            self.give_back(&data, data.padding + 1);
            self.receive.at = At::Data(data);
            return Ok((1, None));
        }
        let n = rest.len().min(data.body);
        let skipped = if n == data.body { (rest.len() - n).min(data.padding) } else { 0 };
        data.body -= n;
        data.padding -= skipped;
        let over = data.body == 0 && data.padding == 0;
        self.receive.at = if over { At::Header } else { At::Data(data) };
        let event = if data.dropped {
            self.release_connection(u32::try_from(n).unwrap_or(0));
            None
        } else {
            self.take_data(&mut data, offset, n, over, now)?
        };
        if data.dropped && !over {
            self.receive.at = At::Data(data);
        }
        Ok((n + skipped, event))
    }

    /// Padding is taken at once.
    pub(super) fn give_back(&mut self, data: &Data, len: usize) {
        let len = u32::try_from(len).unwrap_or(0);
        match self.streams.get_mut(data.id).filter(|_| !data.dropped) {
            Some(stream) => {
                stream.untaken += len;
                self.release(data.id, len as usize);
            }
            None => self.release_connection(len),
        }
    }

    pub(super) fn take_data(
        &mut self,
        data: &mut Data,
        offset: usize,
        n: usize,
        over: bool,
        now: u64,
    ) -> Outcome {
        let (id, end) = (data.id, data.end && over);
        let Some(stream) = self.streams.get_mut(id) else {
            // Reset by the caller since the frame began.
            self.release_connection(u32::try_from(n).unwrap_or(0));
            return Ok(None);
        };
        stream.untaken += u32::try_from(n).unwrap_or(0);
        let wrong = stream.length_left.as_mut().is_some_and(|left| {
            let fits = left.checked_sub(n as u64);
            *left = fits.unwrap_or(0);
            fits.is_none() || (end && *left > 0)
        });
        if wrong {
            data.dropped = true;
            return self.fault(id, Code::PROTOCOL_ERROR, now);
        }
        if end {
            stream.received_end = true;
            self.forget_if_over(id);
        }
        Ok((n > 0 || end).then_some(Event::Data { id, from: offset, to: offset + n, end }))
    }
}
