//! `ringgate ctl upgrade`: asks the running process to be succeeded, and waits for what comes of it.

use std::io::{self, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{print, print_result};
use crate::control::upgrade::encoded;

/// The order was refused, or nobody listens.
const EXIT_FAILED: u8 = 1;
/// Longest answer that is read.
const ANSWER_MAX: u64 = 64 << 10;

/// Carries it out; the exit code.
pub fn run(socket: &Path, binary: Option<&Path>, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    match ask(socket, binary) {
        Ok((200, body)) => print_result(out, &body),
        Ok((_, body)) => {
            print(err, &format!("ringgate: not upgraded: {}\n", body.trim_end()));
            EXIT_FAILED
        }
        Err(error) => {
            let hint = "is it running, with admin.socket in its file, and may you use it?";
            print(err, &format!("ringgate: cannot reach {}: {error}: {hint}\n", socket.display()));
            EXIT_FAILED
        }
    }
}

/// Status and body of the answer, which comes within `node.upgrade_timeout` of the process.
fn ask(socket: &Path, binary: Option<&Path>) -> io::Result<(u16, String)> {
    let query = match binary {
        Some(path) => format!("?binary={}", encoded(&std::path::absolute(path)?)),
        None => String::new(),
    };
    let mut stream = UnixStream::connect(socket)?;
    let request =
        format!("POST /upgrade{query} HTTP/1.1\r\nHost: ringgate\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    let unreadable = || io::Error::from(io::ErrorKind::InvalidData);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(unreadable)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(unreadable)?, body.to_owned()))
}
