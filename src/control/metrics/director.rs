//! The director's threads: frames in, verdicts, frames out; and the neighbours they send to.

use super::Page;
use crate::counter::Counter;
use crate::l4::engine::{Board, Counts, OUTCOMES, Standing};
use crate::packet::ring::Refusal;

/// A family that each director counts, its help, and the counter.
type OfDirector = (&'static str, &'static str, fn(&Counts) -> &Counter);

const OF_DIRECTORS: [OfDirector; 7] = [
    ("ringgate_director_frames_total", "Frames taken out of rings.", |one| &one.received),
    ("ringgate_director_sent_total", "Frames given to an interface.", |one| &one.sent),
    ("ringgate_director_batches_total", "Batches of frames.", |one| &one.batches),
    ("ringgate_director_ring_drops_total", "Frames that found no free slot in a ring.", |one| {
        &one.ring_drops
    }),
    ("ringgate_director_cut_total", "Large frames dropped because their queue was full.", |one| {
        &one.cut
    }),
    ("ringgate_director_ring_errors_total", "Rings whose interface went down or away.", |one| {
        &one.ring_errors
    }),
    ("ringgate_director_released_total", "Held fragments that went on or were given up.", |one| {
        &one.released
    }),
];

pub(super) fn write(page: &mut Page, board: &Board) {
    const VERDICTS: &str = "ringgate_director_verdicts_total";
    const REFUSED: &str = "ringgate_director_send_errors_total";
    const NEIGHBOURS: &str = "ringgate_neighbours";
    let directors =
        || board.directors.iter().enumerate().map(|(index, counts)| (index.to_string(), counts));
    for (name, help, pick) in OF_DIRECTORS {
        page.family(name, "counter", help);
        for (index, counts) in directors() {
            page.sample(name, &[("director", &index)], pick(counts).value());
        }
    }
    page.family(VERDICTS, "counter", "Frames by what the verdict was.");
    for (index, counts) in directors() {
        for (outcome, counter) in OUTCOMES.iter().zip(&counts.outcomes) {
            let labels = [("director", index.as_str()), ("verdict", outcome)];
            page.sample(VERDICTS, &labels, counter.value());
        }
    }
    page.family(REFUSED, "counter", "Frames that an interface did not take.");
    for (index, counts) in directors() {
        for (refusal, counter) in Refusal::ALL.iter().zip(&counts.refused) {
            let labels = [("director", index.as_str()), ("reason", refusal.name())];
            page.sample(REFUSED, &labels, counter.value());
        }
    }
    let network = board.network();
    page.family(NEIGHBOURS, "gauge", "Real servers and peers on the link, by how they stand.");
    for standing in [Standing::Asking, Standing::Reachable, Standing::Lost] {
        let count = network.neighbours.iter().filter(|one| one.standing == standing).count();
        page.sample(NEIGHBOURS, &[("state", standing.name())], count);
    }
    let troubles = network.troubles.len();
    page.single("ringgate_director_troubles", "gauge", "What is wrong now; see /status.", troubles);
}
