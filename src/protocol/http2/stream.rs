//! The streams of a connection that are not over.

use std::collections::VecDeque;

use super::settings::WINDOW_MAX;

/// Streams that we reset and that the peer may not know of yet, at least.
const RESET_KEPT: usize = 256;

/// One stream (RFC 9113 section 5.1).
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    /// The peer has ended its half.
    pub(super) received_end: bool,
    /// We have ended ours.
    pub(super) sent_end: bool,
    /// The final head has come: what follows is data, then trailers.
    pub(super) has_head: bool,
    pub(super) send_window: i64,
    pub(super) receive_window: i64,
    /// Bytes that the reader has taken and the peer was not told of.
    pub(super) credit: u32,
    /// Bytes that the reader has not taken.
    pub(super) untaken: u32,
    /// Bytes of the body still to come, when a length was announced.
    pub(super) length_left: Option<u64>,
    /// Client role: the request was HEAD, so that a length tells nothing.
    pub(super) is_head_request: bool,
}

impl Stream {
    pub(super) fn is_over(&self) -> bool {
        self.received_end && self.sent_end
    }

    /// Changes the send window; false when it grows beyond what a window can be.
    pub(super) fn widen(&mut self, by: i64) -> bool {
        self.send_window += by;
        self.send_window <= WINDOW_MAX
    }
}

/// The open streams. There are few of them, so that looking through their ids is the fastest way.
#[derive(Debug)]
pub(super) struct Streams {
    /// In the order of `open`.
    ids: Vec<u32>,
    open: Vec<Stream>,
    reset: VecDeque<u32>,
    reset_kept: usize,
}

impl Streams {
    /// For at most `max` at a time: the peer may not have heard of twice as many resets.
    pub(super) fn new(max: u32) -> Self {
        let twice = usize::try_from(max).unwrap_or(usize::MAX).saturating_mul(2);
        let (ids, open, reset) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { ids, open, reset, reset_kept: twice.max(RESET_KEPT) }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn insert(&mut self, stream: Stream) {
        self.ids.push(stream.id);
        self.open.push(stream);
    }

    fn position(&self, id: u32) -> Option<usize> {
        self.ids.iter().position(|&known| known == id)
    }

    pub(super) fn get(&self, id: u32) -> Option<&Stream> {
        self.open.get(self.position(id)?)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Stream> {
        let position = self.position(id)?;
        self.open.get_mut(position)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.open.iter_mut()
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Stream> {
        let position = self.position(id)?;
        self.ids.swap_remove(position);
        Some(self.open.swap_remove(position))
    }

    /// Remembers that we reset this stream: what is still under way on it is to be expected.
    pub(super) fn note_reset(&mut self, id: u32) {
        if self.reset.len() >= self.reset_kept {
            self.reset.pop_front();
        }
        self.reset.push_back(id);
    }

    pub(super) fn was_reset(&self, id: u32) -> bool {
        self.reset.contains(&id)
    }
}
