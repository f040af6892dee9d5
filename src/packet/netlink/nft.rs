//! Silence: an nftables table that keeps the kernel from answering what a director forwards
//! (`include/uapi/linux/netfilter/nf_tables.h`).
//!
//! The table has the owner flag: it belongs to this socket, nobody else may change it, and the kernel removes it when
//! the socket closes, however the process ended. Packets are dropped before routing and connection tracking
//! (prerouting, priority raw), behind the packet sockets' tap. The loopback interface is let through: that is the way
//! by which a director delivers to itself.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use super::message::{Message, Request, messages};
use super::{DATAGRAM_MAX, NLMSG_ERROR, PATIENCE_S, address_of_groups, receive, send, verdict};
use crate::packet::options::{self, set, socket};
use crate::packet::ring::filter::Service;

const SUBSYSTEM: u16 = 10;
const OWNER: u32 = 2;
const RAW: i32 = -300;
const CHAIN: &[u8] = b"silence\0";
/// Elements in one message, whose attributes hold 64 KiB.
const ELEMENTS_MAX: usize = 1000;
/// So many services have a rule of comparisons each: a packet that meets all of them costs less than one search in a set.
const FEW: usize = 4;
/// Where an IPv4 header has its protocol.
const PROTOCOL_V4: u32 = 9;
/// `NFT_REG_VERDICT`, and the first of the 32-bit registers.
const VERDICT: u32 = 0;
const REGISTER: u32 = 8;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const META_INTERFACE: u32 = 4;
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const LOOPBACK: u32 = 1;

/// The table, for as long as this lives.
#[derive(Debug)]
pub struct Silence {
    fd: OwnedFd,
    name: Vec<u8>,
    sequence: u32,
    installed: bool,
    buffer: Vec<u8>,
}

impl Silence {
    /// A table of this name, which no other process in the network namespace may have; nothing is installed yet.
    ///
    /// # Errors
    /// EPROTONOSUPPORT without nf_tables in the kernel.
    pub fn open(name: &str) -> io::Result<Self> {
        let fd = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)?;
        options::bind(&fd, address_of_groups(0))?;
        let patience = libc::timeval { tv_sec: PATIENCE_S, tv_usec: 0 };
        set(&fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, patience)?;
        options::set_receive_buffer(&fd, 1 << 20);
        crate::sys::file::set_blocking(std::os::fd::AsFd::as_fd(&fd))?;
        let name = [name.as_bytes(), b"\0"].concat();
        Ok(Self { fd, name, sequence: 0, installed: false, buffer: vec![0; DATAGRAM_MAX] })
    }

    /// Another descriptor of the socket: the table goes with the last one.
    ///
    /// # Errors
    /// EMFILE.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Drops what comes for `services`, except over loopback. What was set before is replaced in one step.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN; what nf_tables says.
    pub fn set(&mut self, services: &[Service]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut batch = Batch { name: &self.name, messages: vec![Batch::edge(16)] };
        if self.installed {
            batch.add(libc::NFT_MSG_DELTABLE, 0, |_| {});
        }
        batch.table();
        batch.chain();
        batch.let_loopback_through();
        if services.len() <= FEW {
            services.iter().for_each(|service| batch.drop_service(service));
        } else {
            batch.drop_all(services);
        }
        batch.messages.push(Batch::edge(17));
        let expected = batch.messages.len() - 2;
        let sequence = self.sequence;
        let bytes: Vec<u8> =
            batch.messages.into_iter().flat_map(|message| message.finish(sequence)).collect();
        send(&self.fd, &bytes)?;
        self.await_all(expected)?;
        self.installed = true;
        Ok(())
    }

    /// Each message is acknowledged; the first that fails fails all.
    fn await_all(&mut self, mut expected: usize) -> io::Result<()> {
        while expected > 0 {
            let len = receive(&self.fd, &mut self.buffer, 0)?;
            for message in messages(self.buffer.get(..len).unwrap_or_default()) {
                if let Message { kind: NLMSG_ERROR, body, sequence } = message
                    && sequence == self.sequence
                {
                    verdict(body)?;
                    expected = expected.saturating_sub(1);
                }
            }
        }
        Ok(())
    }
}

struct Batch<'a> {
    name: &'a [u8],
    messages: Vec<Request>,
}

impl Batch<'_> {
    /// `NFNL_MSG_BATCH_BEGIN` or `_END`.
    fn edge(kind: u16) -> Request {
        let [high, low] = SUBSYSTEM.to_be_bytes();
        Request::new(kind, flags(libc::NLM_F_REQUEST), &[0, 0, high, low])
    }

    /// A message about our table, acknowledged. The table's name is attribute 1 in all of them.
    fn add(&mut self, kind: i32, more: i32, rest: impl FnOnce(&mut Request)) {
        let kind = SUBSYSTEM << 8 | u16::try_from(kind).unwrap_or_default();
        let flags = flags(libc::NLM_F_REQUEST | libc::NLM_F_ACK | more);
        let family = u8::try_from(libc::NFPROTO_INET).unwrap_or_default();
        let mut message = Request::new(kind, flags, &[family, 0, 0, 0]);
        message.attribute(1, self.name);
        rest(&mut message);
        self.messages.push(message);
    }

    fn create(&mut self, kind: i32, rest: impl FnOnce(&mut Request)) {
        self.add(kind, libc::NLM_F_CREATE, rest);
    }

    fn table(&mut self) {
        self.create(libc::NFT_MSG_NEWTABLE, |m| number(m, 2, OWNER));
    }

    fn chain(&mut self) {
        self.create(libc::NFT_MSG_NEWCHAIN, |m| {
            m.attribute(3, CHAIN);
            m.nested(4, |hook| {
                number(hook, 1, u32::try_from(libc::NF_INET_PRE_ROUTING).unwrap_or_default());
                number(hook, 2, RAW.cast_unsigned());
            });
            number(m, 5, ACCEPT);
            m.attribute(7, b"filter\0");
        });
    }

    fn rule(&mut self, build: impl FnOnce(&mut Request)) {
        self.add(libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, |m| {
            m.attribute(2, CHAIN);
            m.nested(4, build);
        });
    }

    fn let_loopback_through(&mut self) {
        self.rule(|rule| {
            meta(rule, META_INTERFACE, REGISTER);
            compare(rule, REGISTER, &LOOPBACK.to_ne_bytes());
            end(rule, ACCEPT);
        });
    }

    /// A rule with a set for each family, with ports and without.
    fn drop_all(&mut self, services: &[Service]) {
        for (family, size) in [(libc::NFPROTO_IPV4, 4), (libc::NFPROTO_IPV6, 16)] {
            let of_family = |one: &&Service| one.address.is_ipv4() == (size == 4);
            let all = services.iter().filter(of_family);
            let (any, ported) = all.partition::<Vec<&Service>, _>(|one| one.port == 0);
            self.drop_services(family, size, &ported, true);
            self.drop_services(family, size, &any, false);
        }
    }

    /// A rule of comparisons.
    fn drop_service(&mut self, service: &Service) {
        let (family, address) = match service.address {
            IpAddr::V4(address) => (libc::NFPROTO_IPV4, address.octets().to_vec()),
            IpAddr::V6(address) => (libc::NFPROTO_IPV6, address.octets().to_vec()),
        };
        let size = u32::try_from(address.len()).unwrap_or_default();
        self.rule(|rule| {
            meta(rule, META_FAMILY, REGISTER);
            compare(rule, REGISTER, &[u8::try_from(family).unwrap_or_default()]);
            payload(rule, NETWORK_HEADER, if size == 4 { 16 } else { 24 }, size, REGISTER);
            compare(rule, REGISTER, &address);
            if size == 4 {
                payload(rule, NETWORK_HEADER, PROTOCOL_V4, 1, REGISTER);
            } else {
                // Behind extension headers.
                meta(rule, META_PROTOCOL, REGISTER);
            }
            compare(rule, REGISTER, &[service.protocol]);
            if service.port != 0 {
                payload(rule, TRANSPORT_HEADER, 2, 2, REGISTER);
                compare(rule, REGISTER, &service.port.to_be_bytes());
            }
            expression(rule, b"counter\0", |_| {});
            end(rule, DROP);
        });
    }

    /// The key is the address, the protocol and the port, each padded to a whole register.
    fn drop_services(&mut self, family: i32, size: u32, services: &[&Service], ports: bool) {
        let key = |one: &&Service| {
            let mut key = match one.address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            key.extend([one.protocol, 0, 0, 0]);
            if ports {
                key.extend(one.port.to_be_bytes());
                key.extend([0, 0]);
            }
            key
        };
        let keys: BTreeSet<Vec<u8>> = services.iter().map(key).collect();
        if keys.is_empty() {
            return;
        }
        let name =
            format!("v{}{}\0", if size == 4 { 4 } else { 6 }, if ports { "" } else { "any" });
        let width = size + if ports { 8 } else { 4 };
        self.elements(name.as_bytes(), width, &keys.into_iter().collect::<Vec<_>>());
        self.rule(|rule| {
            meta(rule, META_FAMILY, REGISTER);
            compare(rule, REGISTER, &[u8::try_from(family).unwrap_or_default()]);
            payload(rule, NETWORK_HEADER, if size == 4 { 16 } else { 24 }, size, REGISTER);
            meta(rule, META_PROTOCOL, REGISTER + size / 4);
            if ports {
                payload(rule, TRANSPORT_HEADER, 2, 2, REGISTER + size / 4 + 1);
            }
            lookup(rule, name.as_bytes());
            expression(rule, b"counter\0", |_| {});
            end(rule, DROP);
        });
    }

    /// A set of keys of `width` bytes.
    fn elements(&mut self, name: &[u8], width: u32, keys: &[Vec<u8>]) {
        let id = u32::try_from(self.messages.len()).unwrap_or_default();
        self.create(libc::NFT_MSG_NEWSET, |m| {
            m.attribute(2, name);
            number(m, 3, 0);
            number(m, 4, 0);
            number(m, 5, width);
            // Their number: a table of fixed size is searched with less work than one that can grow.
            m.nested(9, |description| {
                number(description, 1, u32::try_from(keys.len()).unwrap_or(u32::MAX));
            });
            number(m, 10, id);
        });
        for some in keys.chunks(ELEMENTS_MAX) {
            self.create(libc::NFT_MSG_NEWSETELEM, |m| {
                m.attribute(2, name);
                number(m, 4, id);
                m.nested(3, |list| {
                    for key in some {
                        list.nested(1, |one| one.nested(1, |data| data.attribute(1, key)));
                    }
                });
            });
        }
    }
}

fn flags(flags: i32) -> u16 {
    u16::try_from(flags).unwrap_or_default()
}

/// nf_tables' numbers are big-endian.
fn number(request: &mut Request, kind: u16, value: u32) {
    request.attribute(kind, &value.to_be_bytes());
}

fn expression(rule: &mut Request, name: &[u8], data: impl FnOnce(&mut Request)) {
    rule.nested(1, |one| {
        one.attribute(1, name);
        one.nested(2, data);
    });
}

fn meta(rule: &mut Request, key: u32, to: u32) {
    expression(rule, b"meta\0", |data| {
        number(data, 2, key);
        number(data, 1, to);
    });
}

fn compare(rule: &mut Request, register: u32, value: &[u8]) {
    expression(rule, b"cmp\0", |data| {
        number(data, 1, register);
        number(data, 2, 0);
        data.nested(3, |inner| inner.attribute(1, value));
    });
}

fn payload(rule: &mut Request, base: u32, offset: u32, len: u32, to: u32) {
    expression(rule, b"payload\0", |data| {
        number(data, 1, to);
        number(data, 2, base);
        number(data, 3, offset);
        number(data, 4, len);
    });
}

fn lookup(rule: &mut Request, name: &[u8]) {
    expression(rule, b"lookup\0", |data| {
        data.attribute(1, name);
        number(data, 2, REGISTER);
    });
}

fn end(rule: &mut Request, code: u32) {
    expression(rule, b"immediate\0", |data| {
        number(data, 1, VERDICT);
        data.nested(2, |inner| inner.nested(2, |verdict| number(verdict, 1, code)));
    });
}
