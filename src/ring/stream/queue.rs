//! The chunks of one direction. Nearly always there is one at most, which lies in the stream's own
//! entry: an idle connection holds no memory for a queue, and a new one allocates none.

use std::collections::VecDeque;

use crate::ring::Chunk;

/// First in, first out.
#[derive(Default)]
pub(in crate::ring) struct Queue {
    /// `None` only if `rest` is empty.
    first: Option<Chunk>,
    #[allow(clippy::box_collection)] // each stream has two of them, nearly always empty
    rest: Option<Box<VecDeque<Chunk>>>,
}

impl Queue {
    pub(in crate::ring) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.as_ref().map_or(0, |rest| rest.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn push_back(&mut self, chunk: Chunk) {
        match self.first {
            None => self.first = Some(chunk),
            Some(_) => self.rest.get_or_insert_default().push_back(chunk),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<Chunk> {
        let chunk = self.first.take();
        if let Some(rest) = &mut self.rest {
            self.first = rest.pop_front();
            if rest.is_empty() {
                self.rest = None;
            }
        }
        chunk
    }

    pub(super) fn front(&self) -> Option<&Chunk> {
        self.first.as_ref()
    }

    pub(super) fn front_mut(&mut self) -> Option<&mut Chunk> {
        self.first.as_mut()
    }

    pub(super) fn back_mut(&mut self) -> Option<&mut Chunk> {
        self.rest.as_mut().and_then(|rest| rest.back_mut()).or(self.first.as_mut())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Chunk> {
        self.first.iter().chain(self.rest.iter().flat_map(|rest| rest.iter()))
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn it_is_a_queue(ops in proptest::collection::vec(proptest::option::weighted(0.6, 0u8..), 0..100)) {
            let (mut queue, mut model) = (Queue::default(), VecDeque::new());
            for op in ops {
                if let Some(byte) = op {
                    queue.push_back(bytes::Bytes::copy_from_slice(&[byte]).into());
                    model.push_back(byte);
                } else {
                    let popped = queue.pop_front().map(|chunk| chunk.as_slice()[0]);
                    proptest::prop_assert_eq!(popped, model.pop_front());
                }
                let bytes: Vec<u8> = queue.iter().map(|chunk| chunk.as_slice()[0]).collect();
                proptest::prop_assert_eq!(&bytes, &Vec::from(model.clone()));
                proptest::prop_assert_eq!(queue.len(), model.len());
                proptest::prop_assert_eq!(queue.is_empty(), model.is_empty());
                let front = queue.front().map(|chunk| chunk.as_slice()[0]);
                proptest::prop_assert_eq!(front, model.front().copied());
                let back = queue.back_mut().map(|chunk| chunk.as_slice()[0]);
                proptest::prop_assert_eq!(back, model.back().copied());
            }
        }
    }
}
