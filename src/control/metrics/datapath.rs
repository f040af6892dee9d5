//! How layer 4 forwards on each interface, and what the XDP program did.

use super::Page;
use crate::l4::engine::NetworkView;

pub(super) fn write(page: &mut Page, view: &NetworkView) {
    const DATAPATH: &str = "ringgate_director_datapath";
    const FRAMES: &str = "ringgate_director_xdp_frames_total";
    page.family(
        DATAPATH,
        "gauge",
        "How an interface's frames are forwarded, as a label; always 1.",
    );
    for path in &view.datapaths {
        let labels = [("interface", path.interface.as_str()), ("datapath", path.as_str())];
        page.sample(DATAPATH, &labels, 1);
    }
    let help = "Frames that the XDP program forwarded, and those that it did not or without \
                remembering their flow, by reason. All but syn_limit, stateless \
                and full went up.";
    page.family(FRAMES, "counter", help);
    page.sample(FRAMES, &[("outcome", "forwarded")], view.xdp.forwarded);
    for (reason, count) in &view.xdp.reasons {
        page.sample(FRAMES, &[("outcome", reason.as_str())], count);
    }
}
