//! `[real_server]`: the virtual addresses that directors send this host frames for.

use std::net::IpAddr;
use std::time::Duration;

use crate::control::config::place::{Place, Reported};
use crate::control::config::raw;
use crate::l4::engine::RealServer;

const WRITE_ADDRESSES: &str = r#"write a list of virtual addresses like ["192.168.1.100"]"#;
const ADDRESSES_MAX: usize = 1024;
const LEASE: Duration = Duration::from_secs(6);

pub(super) fn role(root: &Place<'_>, file: &raw::File) -> Result<Option<RealServer>, Reported> {
    let table =
        root.table("real_server", file.real_server.as_ref(), "write a table, `[real_server]`");
    let Some((place, raw)) = table else { return Ok(None) };
    if raw.addresses.is_none() {
        return Err(place.missing("addresses", WRITE_ADDRESSES));
    }
    let mut addresses = Vec::new();
    for (place, text) in place.texts("addresses", &raw.addresses, WRITE_ADDRESSES) {
        let address: IpAddr = text.parse().map_err(|_| {
            place.problem(format_args!("is \"{}\": {WRITE_ADDRESSES}", text.escape_debug()))
        })?;
        let address = address.to_canonical();
        if address.is_loopback() || address.is_multicast() || address.is_unspecified() {
            return Err(
                place.problem(format_args!("is {address}, which is no host's: {WRITE_ADDRESSES}"))
            );
        }
        if addresses.contains(&address) {
            return Err(place.problem(format_args!("is {address}, which stands there already")));
        }
        if addresses.len() == ADDRESSES_MAX {
            return Err(
                place.problem(format_args!("is one too many: {ADDRESSES_MAX} are possible"))
            );
        }
        addresses.push(address);
    }
    if addresses.is_empty() {
        return Err(place.missing("addresses", WRITE_ADDRESSES));
    }
    let lease = place.duration("lease", &raw.lease, LEASE);
    // The kernel counts in whole seconds.
    if lease < Duration::from_secs(1) || lease.subsec_nanos() != 0 {
        return Err(place
            .child("lease", place.span())
            .problem("has to be whole seconds: write a duration like \"6s\""));
    }
    Ok(Some(RealServer { addresses, lease }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::control::config::tests::{bad, good};

    #[test]
    fn problems() {
        bad(&[
            ("[real_server]", "1:1", "write a list of virtual addresses"),
            ("[real_server]\naddresses = []", "1:1", "write a list of virtual addresses"),
            ("[real_server]\naddresses = [\"eth0\"]", "2:14", "write a list of virtual addresses"),
            ("[real_server]\naddresses = [\"127.0.0.1\"]", "2:14", "which is no host's"),
            (
                "[real_server]\naddresses = [\"10.0.0.1\", \"10.0.0.1\"]",
                "2:26",
                "stands there already",
            ),
            (
                "[real_server]\naddresses = [\"10.0.0.1\"]\nlease = \"1500ms\"",
                "1:1",
                "whole seconds",
            ),
        ]);
    }

    #[test]
    fn values() {
        assert_eq!(good("").real_server, None);
        let role =
            good("[real_server]\naddresses = [\"::ffff:10.0.0.1\", \"2001:db8::1\"]").real_server;
        let role = role.expect("a role");
        assert_eq!(
            role.addresses,
            ["10.0.0.1", "2001:db8::1"].map(|a| a.parse::<std::net::IpAddr>().unwrap())
        );
        assert_eq!(role.lease, Duration::from_secs(6));
    }
}
