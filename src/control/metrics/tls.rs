//! Handshakes, certificates and the files they come from.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Page;
use crate::control::state::State;
use crate::l7::tls::metrics::TlsMetrics;

/// A name and its figures by shard.
type Named<'a> = (&'a str, Vec<&'a TlsMetrics>);

/// Handshakes with clients and servers, and until when certificates are valid.
pub(super) fn write(page: &mut Page, state: &State) {
    let (listeners, upstreams) = (state.listeners(), state.upstreams());
    let of_listeners: Vec<Named<'_>> = listeners
        .iter()
        .map(|l| (l.name.as_str(), l.figures.iter().map(|shard| &shard.tls).collect()))
        .collect();
    let of_upstreams: Vec<Named<'_>> = upstreams
        .iter()
        .map(|upstream| {
            let shared = &upstream.shared;
            let tls = shared.metrics.iter().map(|shard| &shard.tls).collect();
            (shared.config.name.as_str(), tls)
        })
        .collect();
    handshakes(page, ("ringgate_tls", "listener", "clients"), &of_listeners);
    handshakes(page, ("ringgate_upstream_tls", "upstream", "servers"), &of_upstreams);
    let name = "ringgate_tls_broken_connections_total";
    page.family(
        name,
        "counter",
        "Connections ended by a bad record or a fatal alert, after the handshake.",
    );
    for (listener, tls) in &of_listeners {
        let broken = tls.iter().map(|shard| shard.broken.value()).sum::<u64>();
        page.sample(name, &[("listener", listener)], broken);
    }
    let name = "ringgate_tls_certificate_expiry_timestamp_seconds";
    page.family(name, "gauge", "Last second of a certificate's validity, since 1970.");
    for certificate in state.tls.certificates() {
        let labels = [("listener", certificate.listener.as_str()), ("file", &certificate.file)];
        page.sample(name, &labels, certificate.not_after);
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let name = "ringgate_tls_files_replaced_total";
    page.single(
        name,
        "counter",
        "Changes of certificates or keys put in force.",
        count(&state.tls.replaced),
    );
    let name = "ringgate_tls_files_refused_total";
    page.single(
        name,
        "counter",
        "Changes of certificates or keys refused.",
        count(&state.tls.refused),
    );
}

/// Successes and failures by listener or upstream.
fn handshakes(page: &mut Page, (prefix, label, with): (&str, &str, &str), all: &[Named<'_>]) {
    let family = format!("{prefix}_handshakes_total");
    page.family(&family, "counter", &format!("TLS handshakes with {with}, by version."));
    for (name, tls) in all {
        let each = tls.iter().map(|shard| shard.successes());
        for ((version, resumed), count) in added(each) {
            let labels = [(label, *name), ("version", version), ("resumed", resumed)];
            page.sample(&family, &labels, count);
        }
    }
    let family = format!("{prefix}_handshake_failures_total");
    page.family(&family, "counter", &format!("TLS handshakes with {with} that failed."));
    for (name, tls) in all {
        let each = tls.iter().map(|shard| shard.failures());
        for (reason, count) in added(each) {
            page.sample(&family, &[(label, *name), ("reason", reason)], count);
        }
    }
}

/// Adds the figures of the shards up, label by label; each shard has the same labels in order.
fn added<L: Copy>(
    shards: impl Iterator<Item = impl Iterator<Item = (L, u64)>>,
) -> impl Iterator<Item = (L, u64)> {
    let mut sums: Vec<(L, u64)> = Vec::new();
    for shard in shards {
        for (index, (label, count)) in shard.enumerate() {
            match sums.get_mut(index) {
                Some((_, sum)) => *sum += count,
                None => sums.push((label, count)),
            }
        }
    }
    sums.into_iter()
}
