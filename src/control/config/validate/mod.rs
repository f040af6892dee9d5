//! Raw values into validated ones, a file of this directory for each subject.

mod address;
mod check;
mod conditions;
mod director;
mod headers;
mod host;
mod http;
mod limits;
mod listeners;
mod node;
mod real_server;
mod routes;
mod tls;
mod tracing;
mod tuning;
mod upstreams;
mod virtual_servers;
mod vrrp;

use super::place::{Place, Report, Reported};
use super::{Config, raw};
use crate::l4::config::L4;
use crate::l7::config::Service;

/// Builds the configuration; `Err` says that `report` holds at least one problem.
pub(super) fn config(report: &Report<'_>, file: &raw::File) -> Result<Config, Reported> {
    let root = Place::root(report);
    let node = node::node(&root, file);
    let log = node::log(&root, file);
    let admin = node::admin(&root, file);
    let mut http = http::http(&root, file);
    let clients = limits::limits(&root, file);
    let traced = tracing::tracing(&root, file, &mut http);
    let (tls, policy) = tls::settings(&root, file);
    let admin_address = admin.as_ref().ok().copied().flatten();
    let listeners = listeners::listeners(&root, file, admin_address, policy);
    let tuning = tuning::tuning(&root, file, node.as_ref().ok(), &listeners, admin_address);
    let upstreams = upstreams::upstreams(&root, file);
    let known = upstreams.as_deref().unwrap_or_default();
    let checks = upstreams::checks(&root, file, known);
    let names = routes::Names {
        listeners: listeners.iter().map(|listener| listener.name.as_str()).collect(),
        upstreams: upstreams::names(file),
    };
    let routes = routes::routes(&root, file, &names);
    let ha = vrrp::ha(&root, file, &names.upstreams);
    let director = director::director(&root, file);
    let others = virtual_servers::Others { listeners: &listeners, ha: ha.as_ref().ok() };
    let services = virtual_servers::virtual_servers(&root, file, &others);
    let l4_checks =
        if services.is_ok() { virtual_servers::checks(&root, file) } else { Vec::new() };
    let real_server = real_server::role(&root, file);
    let admin_socket = node::admin_socket(&root, file);
    let admin_token = node::admin_token(&root, file);
    let service = Service {
        http,
        tls,
        listeners,
        routes: routes?,
        upstreams: upstreams?,
        clients,
        tracing: traced,
    };
    let (base, loaded) = Default::default();
    let text = String::new();
    Ok(Config {
        node: node?,
        log: log?,
        tuning,
        admin: admin?,
        admin_socket: admin_socket?,
        admin_token: admin_token?,
        service,
        checks,
        ha: ha?,
        file: None,
        l4_checks,
        l4: L4 { director: director?, services: services? },
        real_server: real_server?,
        base,
        loaded,
        text,
        watch: false,
        warnings: Vec::new(),
    })
}
