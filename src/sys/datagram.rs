//! A datagram to a unix socket by name, abstract names included (unix(7)), as service managers take them.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `bytes` to the socket called `name`: a path, or `@` and the rest of an abstract name. Does not wait.
///
/// # Errors
/// ENOENT and ECONNREFUSED when nobody is there, EAGAIN when its queue is full.
pub fn send_to(name: &str, bytes: &[u8]) -> io::Result<()> {
    let address = match name.strip_prefix('@') {
        Some(hidden) => SocketAddr::from_abstract_name(hidden.as_bytes())?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(bytes, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_abstract_names_are_reached() {
        let path = std::env::temp_dir().join(format!("ringgate-notify-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let named = UnixDatagram::bind(&path).expect("a socket");
        let hidden = format!("ringgate-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(hidden.as_bytes()).expect("short");
        let other = UnixDatagram::bind_addr(&address).expect("a socket");
        send_to(path.to_str().expect("text"), b"READY=1").expect("there");
        send_to(&format!("@{hidden}"), b"READY=1").expect("there");
        let mut buffer = [0; 16];
        for socket in [named, other] {
            let length = socket.recv(&mut buffer).expect("one came");
            assert_eq!(&buffer[..length], b"READY=1");
        }
        std::fs::remove_file(&path).expect("ours");
        assert!(send_to(path.to_str().expect("text"), b"x").is_err());
        assert!(send_to("@", b"x").is_err());
    }
}
