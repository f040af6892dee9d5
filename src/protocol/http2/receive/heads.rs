//! HEADERS and CONTINUATION: requests, responses, trailers.

use super::{
    Block, Code, Connection, Event, Fault, Header, Kind, Outcome, Rate, Reason, Role, Summary,
    frame,
};

impl Connection {
    pub(super) fn headers(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        let id = header.stream;
        if id == 0 {
            return Err(Reason::Protocol);
        }
        let mut fragment = frame::unpadded(header, payload).ok_or(Reason::Protocol)?;
        let mut faulty = false;
        if header.has(frame::WITH_PRIORITY) {
            let (priority, rest) = fragment.split_first_chunk::<5>().ok_or(Reason::FrameSize)?;
            faulty = frame::number(priority).is_some_and(|on| on & 0x7fff_ffff == id);
            fragment = rest;
        }
        if self.streams.get(id).is_none() && !self.is_new(id) {
            self.check_closed(id)?;
        }
        let end = header.has(frame::END_STREAM);
        let block = Block { id, end, continuations: 0, faulty };
        if header.has(frame::END_HEADERS) {
            return self.block(block, fragment, now);
        }
        if fragment.is_empty() {
            self.count(Rate::Empty, now)?;
        }
        self.receive.fragments.clear();
        self.receive.fragments.extend_from_slice(fragment);
        self.receive.block = Some(block);
        Ok(None)
    }

    pub(super) fn is_new(&self, id: u32) -> bool {
        self.role == Role::Server && id % 2 == 1 && id > self.last_peer
    }

    pub(super) fn continuation(&mut self, header: Header, payload: &[u8], now: u64) -> Outcome {
        let Some(mut block) = self.receive.block else { return Err(Reason::Protocol) };
        block.continuations += 1;
        // What cannot be decoded to less than the limit need not be collected to be refused; Huffman
        // codes are 30 bits at most, so that honest heads are never that long.
        let len = self.receive.fragments.len() + payload.len();
        if block.continuations > self.limits.continuations || len > 2 * self.limits.head_bytes {
            return Err(Reason::ContinuationFlood);
        }
        self.receive.fragments.extend_from_slice(payload);
        self.receive.block = Some(block);
        if !header.has(frame::END_HEADERS) {
            if payload.is_empty() {
                self.count(Rate::Empty, now)?;
            }
            return Ok(None);
        }
        self.receive.block = None;
        let fragments = std::mem::take(&mut self.receive.fragments);
        let outcome = self.block(block, &fragments, now);
        self.receive.fragments = fragments;
        outcome
    }

    /// A whole field block.
    pub(super) fn block(&mut self, block: Block, bytes: &[u8], now: u64) -> Outcome {
        let Block { id, end, faulty, .. } = block;
        let stream = self.streams.get(id);
        let kind = match (self.role, stream) {
            (Role::Server, None) => Kind::Request,
            (_, Some(stream)) if stream.has_head => Kind::Trailers,
            (Role::Server, Some(_)) => Kind::Trailers,
            (Role::Client, _) => Kind::Response,
        };
        let is_closed = stream.is_some_and(|stream| stream.received_end);
        let to_head = stream.is_some_and(|stream| stream.is_head_request);
        self.assembler.begin(kind);
        self.assembler.to_head = to_head;
        let (assembler, limits) = (&mut self.assembler, &self.limits);
        self.decoder
            .decode(bytes, |name, value| {
                assembler.field(name, value, limits.fields, limits.head_bytes);
            })
            .map_err(|_| Reason::Compression)?;
        if self.streams.get(id).is_none() {
            if !self.is_new(id) {
                if self.role == Role::Server {
                    self.count(Rate::Glitch, now)?;
                }
                return Ok(None); // behind a reset of ours: only decoded
            }
            return self.request(id, end, faulty, now);
        }
        if is_closed {
            return self.fault(id, Code::STREAM_CLOSED, now);
        }
        let assembled = self.assembler.finish(end, &mut self.head);
        let Ok(summary) = assembled.map_err(|_| ()) else {
            return self.fault(id, Code::PROTOCOL_ERROR, now);
        };
        if kind == Kind::Trailers {
            self.trailers(id, now)
        } else {
            self.response(id, end, summary, now)
        }
    }

    pub(super) fn request(&mut self, id: u32, end: bool, faulty: bool, now: u64) -> Outcome {
        self.last_peer = id;
        if self.is_too_late(id) {
            self.streams.note_reset(id); // the GOAWAY has told that it is not served
            return Ok(None);
        }
        if u32::try_from(self.streams.len()).is_ok_and(|open| open >= self.limits.streams) {
            self.count(Rate::Error, now)?;
            self.refuse(id, Code::REFUSED_STREAM);
            return Ok(None);
        }
        let assembled = self.assembler.finish(end, &mut self.head);
        let length = match assembled {
            Ok(summary) => {
                self.receive.summary = summary;
                summary.length
            }
            Err(_) => None,
        };
        if faulty || assembled == Err(Fault::Malformed) {
            self.count(Rate::Error, now)?;
            self.refuse(id, Code::PROTOCOL_ERROR);
            return Ok(Some(Event::Reset { id, code: Code::PROTOCOL_ERROR, fault: true }));
        }
        let stream = self.new_stream(id, end, false, length, false);
        self.streams.insert(stream);
        Ok(Some(match assembled {
            Ok(_) => Event::Request { id, end },
            Err(_) => Event::TooLarge { id },
        }))
    }

    pub(super) fn response(&mut self, id: u32, end: bool, summary: Summary, now: u64) -> Outcome {
        let interim = summary.status < 200;
        let Some(stream) = self.streams.get_mut(id) else { return Ok(None) };
        stream.has_head = !interim;
        let bodiless = stream.is_head_request || matches!(summary.status, 204 | 304);
        if !bodiless {
            stream.length_left = summary.length;
        }
        if end && stream.length_left.is_some_and(|left| left > 0) {
            return self.fault(id, Code::PROTOCOL_ERROR, now);
        }
        self.receive.summary = summary;
        if end {
            stream.received_end = true;
            self.forget_if_over(id);
        }
        Ok(Some(Event::Response { id, end, interim }))
    }

    pub(super) fn trailers(&mut self, id: u32, now: u64) -> Outcome {
        let Some(stream) = self.streams.get_mut(id) else { return Ok(None) };
        if stream.length_left.is_some_and(|left| left > 0) {
            return self.fault(id, Code::PROTOCOL_ERROR, now);
        }
        stream.received_end = true;
        self.forget_if_over(id);
        Ok(Some(Event::Trailers { id }))
    }
}
