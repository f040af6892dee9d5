//! One document posted to a URL, over TCP or TLS. It waits, so it is the notifying thread's.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::config::Webhook;

/// Connecting to one address, and each read and write, may take this long.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Posts JSON text; an error unless the server answers with 2xx.
pub(super) fn post(webhook: &Webhook, body: &str) -> io::Result<()> {
    let tcp = connect(webhook)?;
    let status = match &webhook.tls {
        None => converse(tcp, webhook, body)?,
        Some(trust) => {
            let client =
                trust.client.as_ref().ok_or_else(|| io::Error::other("no TLS settings"))?;
            let name = ServerName::try_from(webhook.host.clone()).map_err(io::Error::other)?;
            let tls = ClientConnection::new(Arc::clone(client), name).map_err(io::Error::other)?;
            converse(StreamOwned::new(tls, tcp), webhook, body)?
        }
    };
    if status / 100 == 2 { Ok(()) } else { Err(io::Error::other(format!("status {status}"))) }
}

fn connect(webhook: &Webhook) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for address in (webhook.host.as_str(), webhook.port).to_socket_addrs()?.take(ADDRESSES_MAX) {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(tcp) => {
                tcp.set_read_timeout(Some(TIMEOUT))?;
                tcp.set_write_timeout(Some(TIMEOUT))?;
                return Ok(tcp);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The status that the server answers with.
fn converse(mut stream: impl Read + Write, webhook: &Webhook, body: &str) -> io::Result<u16> {
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        webhook.target,
        webhook.authority,
        body.len(),
    );
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut head = [0; 12]; // "HTTP/1.1 200"
    stream.read_exact(&mut head)?;
    let status = head.get(9..).and_then(|digits| std::str::from_utf8(digits).ok());
    let status = status.and_then(|digits| digits.parse().ok());
    status.ok_or_else(|| io::Error::other("no HTTP response"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_document_is_posted() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let webhook = Webhook {
            authority: "hooks.example".into(),
            host: "127.0.0.1".into(),
            port: listener.local_addr().expect("bound").port(),
            target: "/vip?x=1".into(),
            tls: None,
        };
        let server = thread::spawn(move || {
            let mut all = Vec::new();
            for answer in ["204 No Content", "500 Oh"] {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut text = Vec::new();
                while !text.ends_with(b"{\"a\":1}") {
                    let mut bytes = [0; 256];
                    let len = stream.read(&mut bytes).expect("a request");
                    text.extend_from_slice(&bytes[..len]);
                }
                // In one piece: the client closes once it has the status.
                let answer = format!("HTTP/1.1 {answer}\r\n\r\n");
                stream.write_all(answer.as_bytes()).expect("a reader");
                all.push(String::from_utf8(text).expect("text"));
            }
            all
        });
        post(&webhook, "{\"a\":1}").expect("a good answer");
        let error = post(&webhook, "{\"a\":1}").expect_err("a bad one");
        assert_eq!(error.to_string(), "status 500");
        for text in server.join().expect("no panic") {
            assert!(
                text.starts_with("POST /vip?x=1 HTTP/1.1\r\nHost: hooks.example\r\n"),
                "{text}"
            );
            assert!(text.contains("Content-Length: 7\r\n"), "{text}");
        }
    }
}
