//! `[limits]`: what each client address may do.

use std::sync::Arc;
use std::time::Duration;

use super::address;
use crate::control::config::place::{BYTES_MAX, Place};
use crate::control::config::raw;
use crate::l7::clients::{Clients, Settings};
use crate::l7::pool::millis;

/// A place in the table is 24 bytes.
const TABLE_SIZES: std::ops::RangeInclusive<u32> = 1024..=16_777_216;

pub(super) fn limits(root: &Place<'_>, file: &raw::File) -> Option<Arc<Clients>> {
    let table = root.table("limits", file.limits.as_ref(), "write a table, `[limits]`");
    let (place, raw) = table?;
    let rate = place.integer("request_rate", &raw.request_rate, 0..=1_000_000, 0);
    let settings = Settings {
        connections: place.integer("connections", &raw.connections, 0..=u32::MAX, 0),
        request_rate: rate,
        request_burst: place.integer(
            "request_burst",
            &raw.request_burst,
            1..=1_000_000,
            rate.clamp(1, 1_000_000),
        ),
        status: place.integer("status", &raw.status, 400..=599, 429),
        min_upload_rate: place.size("min_upload_rate", &raw.min_upload_rate, 0..=BYTES_MAX, 0),
        min_download_rate: place.size(
            "min_download_rate",
            &raw.min_download_rate,
            0..=BYTES_MAX,
            0,
        ),
        rate_grace_ms: millis(place.duration(
            "rate_grace",
            &raw.rate_grace,
            Duration::from_secs(10),
        )),
        exempt: address::nets(&place, "exempt", &raw.exempt),
        table_size: place.integer("table_size", &raw.table_size, TABLE_SIZES, 65_536) as usize,
    };
    Clients::new(settings).map(Arc::new)
}

#[cfg(test)]
mod tests {
    use crate::control::config::tests::{bad, good};

    #[test]
    fn problems() {
        bad(&[
            ("connections = -1", "2:15", "`limits.connections` is -1: write a whole number"),
            (
                "request_burst = 0",
                "2:17",
                "`limits.request_burst` is 0: write a whole number from 1",
            ),
            (
                "status = 200",
                "2:10",
                "`limits.status` is 200: write a whole number from 400 to 599",
            ),
            ("min_upload_rate = \"1 KB\"", "2:19", "write bytes or a size like"),
            ("rate_grace = 5", "2:14", "a time needs a unit"),
            ("table_size = 1", "2:14", "`limits.table_size` is 1: write a whole number from 1024"),
            ("exempt = [\"10.0.0.1/8\"]", "2:11", "bits beyond the prefix length"),
        ]
        .map(|(line, at, says)| (format!("[limits]\n{line}"), at, says)));
    }

    #[test]
    fn values() {
        assert!(good("").service.clients.is_none());
        assert!(good("[limits]\nexempt = [\"10.0.0.0/8\"]").service.clients.is_none());
        let config = good("[limits]\nconnections = 5\nrequest_rate = 20\nstatus = 503");
        let clients = config.service.clients.expect("limits");
        let settings = &clients.settings;
        assert_eq!((settings.connections, settings.request_rate), (5, 20));
        assert_eq!((settings.request_burst, settings.status), (20, 503));
        assert_eq!(settings.rate_grace_ms, 10_000);
    }
}
