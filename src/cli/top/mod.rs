//! `ringgate top`: a running process in the terminal, asked through its admin socket.

mod frame;
mod keys;

use std::io::{self, Write};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use serde_json::Value;

use self::frame::View;
use self::keys::{Key, Keyboard};
use super::{ctl, print, print_result};
use crate::sys::poll;
use crate::sys::signal::SignalFd;

/// Nobody could be asked, or there is no terminal.
const EXIT_FAILED: u8 = 1;
/// How long a key may wait to be looked at.
const KEY_WAIT: Duration = Duration::from_millis(100);
/// Rows of a printed frame at most.
const ROWS_MAX: u16 = 500;

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct How<'a> {
    /// The admin socket.
    pub socket: &'a Path,
    /// Seconds between looks.
    pub interval: u64,
    /// Print one frame as text.
    pub once: bool,
    /// Columns of that frame.
    pub width: u16,
}

/// Shows it; the exit code.
pub fn run(how: &How<'_>, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let unreachable = |error: &io::Error| {
        let path = how.socket.display();
        format!("ringgate: cannot reach {path}: {error}: is it running, and may you use it?\n")
    };
    let mut view = View::default();
    if let Err(error) = look(how.socket, &mut view) {
        print(err, &unreachable(&error));
        return EXIT_FAILED;
    }
    if how.once {
        return match text(&view, how.width) {
            Ok(text) => print_result(out, &text),
            Err(error) => {
                print(err, &format!("ringgate: cannot draw: {error}\n"));
                EXIT_FAILED
            }
        };
    }
    match watch(how, view) {
        Ok(()) => 0,
        Err(error) => {
            print(err, &format!("ringgate: cannot use the terminal: {error}\n"));
            EXIT_FAILED
        }
    }
}

/// Asks the process; what it says is shown from then on.
fn look(socket: &Path, view: &mut View) -> io::Result<()> {
    let ask = |target: &str| {
        let (_, body) = ctl::ask(socket, "GET", target, "")?;
        serde_json::from_str::<Value>(&body).map_err(io::Error::other)
    };
    let (status, history) = (ask("/status")?, ask("/history")?);
    view.take(status, history, Instant::now());
    Ok(())
}

/// One frame, as tall as it needs to be.
fn text(view: &View, width: u16) -> io::Result<String> {
    let rows = u16::try_from(view.height(width)).unwrap_or(ROWS_MAX).clamp(10, ROWS_MAX);
    let mut terminal = Terminal::new(TestBackend::new(width, rows)).map_err(io::Error::other)?;
    terminal.draw(|frame| frame::draw(frame, view)).map_err(io::Error::other)?;
    Ok(lines(terminal.backend().buffer()))
}

fn lines(buffer: &Buffer) -> String {
    let mut text = String::new();
    for y in 0..buffer.area.height {
        let line: String = (0..buffer.area.width)
            .filter_map(|x| buffer.cell((x, y)))
            .map(|c| c.symbol())
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let end = text.trim_end().len();
    text.truncate(end);
    text.push('\n');
    text
}

/// The live view, until a key or a signal ends it. The terminal is given back however it ends: on a
/// panic too, by the hook that `ratatui::try_init` puts in place.
fn watch(how: &How<'_>, mut view: View) -> io::Result<()> {
    // SIGHUP ends it as it ends any program: there is no terminal to give back then.
    let signals = SignalFd::block(&[libc::SIGINT, libc::SIGTERM])?;
    let mut keyboard = Keyboard::open()?;
    let mut terminal = ratatui::try_init()?;
    let result = (|| {
        let mut looked = Instant::now();
        loop {
            terminal.draw(|frame| frame::draw(frame, &view))?;
            if asked_to_end(&signals)? || ended(&mut keyboard, &mut view)? {
                return Ok(());
            }
            if looked.elapsed() >= Duration::from_secs(how.interval) {
                looked = Instant::now();
                view.trouble = look(how.socket, &mut view).err().map(|error| error.to_string());
            }
        }
    })();
    ratatui::try_restore()?;
    result
}

fn asked_to_end(signals: &SignalFd) -> io::Result<bool> {
    let (mut ready, mut scratch) = (Vec::new(), Vec::new());
    poll::readable(&[signals.as_raw_fd()], Some(Duration::ZERO), &mut ready, &mut scratch)?;
    Ok(!ready.is_empty())
}

/// Waits a moment for keys; true for one that ends it. A new size needs no more than the next frame.
fn ended(keyboard: &mut Keyboard, view: &mut View) -> io::Result<bool> {
    for key in keyboard.wait(KEY_WAIT)? {
        match key {
            Key::End => return Ok(true),
            Key::Scroll(rows) => view.scroll = view.scroll.saturating_add_signed(rows),
            Key::Home => view.scroll = 0,
        }
    }
    Ok(false)
}
