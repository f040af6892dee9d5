//! What `ringgate top` shows: lines from the process' answers, and their place on the screen.

use std::collections::HashMap;
use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline};
use serde_json::Value;

/// Columns from which charts stand side by side.
const WIDE: u16 = 70;
/// Rows of a chart with its frame.
const CHART_ROWS: u16 = 5;
/// Columns of a line about a server that are not its name.
const SERVER_COLUMNS: usize = 36;
/// The same where weight and requests in flight are left out, and columns below which they are.
const SERVER_COLUMNS_NARROW: usize = 20;
const NARROW: usize = 60;
/// Columns of a name, or of a line of text, that are left however narrow it is.
const NAME_LEAST: usize = 4;
/// Before a text that belongs to the line above; twice before what is left of it.
const INDENT: &str = "  ";

/// What is known, and where the user looks.
#[derive(Debug, Default)]
pub(super) struct View {
    status: Value,
    history: Value,
    /// Counts at the last look, and how many a second there were since the one before.
    counts: HashMap<String, u64>,
    rates: HashMap<String, f64>,
    looked: Option<Instant>,
    /// Why the last look failed.
    pub(super) trouble: Option<String>,
    /// Lines scrolled away.
    pub(super) scroll: u16,
}

impl View {
    /// Takes in what the process says.
    pub(super) fn take(&mut self, status: Value, history: Value, now: Instant) {
        let mut counts = HashMap::new();
        for shard in list(&status["shards"]) {
            counts.insert(format!("shard {}", shard["shard"]), number(&shard["requests"]));
        }
        for service in list(&status["virtual_servers"]) {
            for server in list(&service["servers"]) {
                counts.insert(real_server(service, server), number(&server["conns"]));
            }
        }
        for upstream in list(&status["upstreams"]) {
            for server in list(&upstream["servers"]) {
                let name =
                    format!("server {} {}", word(&upstream["name"]), word(&server["address"]));
                counts.insert(name, number(&server["responses"]));
            }
        }
        if let Some(looked) = self.looked {
            let seconds = now.saturating_duration_since(looked).as_secs_f64().max(0.001);
            let rate = |(name, count): (&String, &u64)| {
                let before = self.counts.get(name)?;
                #[allow(clippy::cast_precision_loss)] // a rate for people
                let rate = count.saturating_sub(*before) as f64 / seconds;
                Some((name.clone(), rate))
            };
            self.rates = counts.iter().filter_map(rate).collect();
        }
        (self.status, self.history, self.counts) = (status, history, counts);
        self.looked = Some(now);
    }

    /// Rows that everything takes at this width.
    pub(super) fn height(&self, width: u16) -> usize {
        usize::from(head_rows(width)) + self.body(width).len()
    }

    fn rate(&self, name: &str) -> String {
        self.rates.get(name).map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}"))
    }

    fn title(&self) -> Line<'static> {
        let phase = word(&self.status["phase"]).to_owned();
        let color = if phase == "serving" { Color::Green } else { Color::Yellow };
        let mut spans =
            vec![Span::styled("Ringgate ", Style::default().add_modifier(Modifier::BOLD))];
        // First, since what stands last is what a narrow terminal cuts.
        if let Some(trouble) = &self.trouble {
            spans.push(Span::styled(format!("no answer: {trouble}  "), bad()));
        }
        spans.extend([
            Span::styled(phase, Style::default().fg(color)),
            Span::raw(format!(
                " {} pid {} up {} s",
                word(&self.status["version"]),
                self.status["pid"],
                self.status["uptime_seconds"]
            )),
        ]);
        Line::from(spans)
    }

    fn now(&self, width: u16) -> Line<'static> {
        let rates = &self.status["rates"];
        let open: u64 =
            list(&self.status["shards"]).iter().map(|s| number(&s["connections"])).sum();
        let errors = rates["errors_percent"].as_f64().unwrap_or_default();
        Line::from(vec![
            Span::raw(format!(
                "{:.0} req/s  ",
                rates["requests_per_second"].as_f64().unwrap_or_default()
            )),
            Span::styled(
                format!("{errors:.1} % 5xx"),
                if errors >= 1.0 { bad() } else { Style::default() },
            ),
            Span::raw(match usize::from(width) < NARROW {
                true => format!("  p99 {}  {open} conns", ms(&rates["p99_ms"])),
                false => format!(
                    "  p50 {}  p90 {}  p99 {}  {open} conns",
                    ms(&rates["p50_ms"]),
                    ms(&rates["p90_ms"]),
                    ms(&rates["p99_ms"])
                ),
            }),
        ])
    }

    /// Everything below the charts, a line each.
    fn body(&self, width: u16) -> Vec<Line<'static>> {
        let mut lines = Vec::new();
        for upstream in list(&self.status["upstreams"]) {
            self.upstream(upstream, usize::from(width), &mut lines);
        }
        for service in list(&self.status["virtual_servers"]) {
            self.virtual_server(service, usize::from(width), &mut lines);
        }
        for text in list(&self.status["director"]["problems"]) {
            let text = format!("director: {}", plain(text));
            wrapped(&text, usize::from(width), bad(), &mut lines);
        }
        self.shards(usize::from(width), &mut lines);
        for one in list(&self.status["vrrp"]["instances"]) {
            let active = word(&one["role"]) == "active";
            let state = if active { Style::default().fg(Color::Green) } else { Style::default() };
            // The role is what matters: a long name is cut for it.
            let role = plain(&one["role"]);
            let room = usize::from(width).saturating_sub(role.chars().count() + "vrrp  ".len());
            lines.push(Line::from(vec![
                Span::raw(format!(
                    "vrrp {} ",
                    shortened(&plain(&one["name"]), room.max(NAME_LEAST))
                )),
                Span::styled(role, state),
                Span::raw(format!(" priority {} on {}", one["priority"], plain(&one["interface"]))),
            ]));
            for key in ["why", "misconfigurations", "problems"] {
                for text in list(&one[key]) {
                    wrapped(&plain(text), usize::from(width), bad(), &mut lines);
                }
            }
        }
        for drift in list(&self.status["tuning"]["drift"]) {
            let (key, now) = (plain(&drift["key"]), plain(&drift["now"]));
            let text = format!("drift {key} is {now}, wanted {}", plain(&drift["wanted"]));
            wrapped(&text, usize::from(width), Style::default().fg(Color::Yellow), &mut lines);
        }
        lines
    }

    fn upstream(&self, upstream: &Value, width: usize, lines: &mut Vec<Line<'static>>) {
        let narrow = width < NARROW;
        let taken = if narrow { SERVER_COLUMNS_NARROW } else { SERVER_COLUMNS };
        let name_width = width.saturating_sub(taken).clamp(10, 44);
        let middle =
            if narrow { String::new() } else { format!(" {:>6} {:>7}", "weight", "flight") };
        let head = format!(
            "{:name_width$} {:>10}{middle} {:>8}",
            cut(&format!("upstream {}", plain(&upstream["name"])), name_width),
            "state",
            "resp/s"
        );
        lines.push(Line::styled(head, Style::default().add_modifier(Modifier::BOLD)));
        for server in list(&upstream["servers"]) {
            let address = plain(&server["address"]);
            let state = plain(&server["state"]);
            let rate = self.rate(&format!("server {} {address}", word(&upstream["name"])));
            let style = match state.as_str() {
                "up" => Style::default().fg(Color::Green),
                "drained" | "unresolved" => Style::default().fg(Color::Yellow),
                _ => bad(),
            };
            let mut spans = vec![
                Span::raw(format!("{:name_width$} ", cut(&format!("  {address}"), name_width))),
                Span::styled(format!("{:>10}", cut(&state, 10)), style),
                Span::raw(match narrow {
                    true => format!(" {rate:>8}"),
                    false => format!(
                        " {:>6} {:>7} {rate:>8}",
                        server["weight"].to_string(),
                        server["in_flight"].to_string()
                    ),
                }),
            ];
            let why = plain(&server["why"]);
            let fits = name_width + taken + 2 + why.chars().count() <= width;
            if why != "-" && fits {
                spans.push(Span::raw(format!("  {why}")));
            }
            lines.push(Line::from(spans));
            if why != "-" && !fits {
                wrapped(&format!("  {why}"), width, Style::default(), lines);
            }
        }
        for drift in list(&upstream["drift"]) {
            let text =
                format!("not in the file: {} {}", plain(&drift["server"]), plain(&drift["what"]));
            wrapped(&text, width, Style::default().fg(Color::Yellow), lines);
        }
    }

    fn virtual_server(&self, service: &Value, width: usize, lines: &mut Vec<Line<'static>>) {
        let narrow = width < NARROW;
        let taken = if narrow { SERVER_COLUMNS_NARROW } else { SERVER_COLUMNS };
        let name_width = width.saturating_sub(taken + 2).clamp(10, 44);
        let bold = Style::default().add_modifier(Modifier::BOLD);
        let role = if service["active"] == true { "  active" } else { "  backup" };
        let mut says = vec![Span::raw(role)];
        if service["quorum"] == false {
            says.push(Span::styled("  no quorum", bad()));
        }
        let says_width: usize = says.iter().map(Span::width).sum();
        let name = name_of(service);
        if name_width + taken + 2 + says_width > width {
            // No room for the columns' names: whom it serves and whether it does go before.
            lines.push(Line::styled(shortened(&name, width), bold));
            lines.push(Line::from(says));
        } else {
            let head = format!(
                "{:name_width$} {:>12} {:>6} {:>7} {:>8}",
                cut(&name, name_width),
                "state",
                "weight",
                "active",
                "conn/s"
            );
            let mut spans = vec![Span::styled(head, bold)];
            spans.append(&mut says);
            lines.push(Line::from(spans));
        }
        for server in list(&service["servers"]) {
            let state = plain(&server["state"]);
            let style = match state.as_str() {
                "up" => Style::default().fg(Color::Green),
                "draining" | "removed" | "full" => Style::default().fg(Color::Yellow),
                _ => bad(),
            };
            let rate = self.rate(&real_server(service, server));
            lines.push(Line::from(vec![
                Span::raw(format!(
                    "{:name_width$} ",
                    cut(&format!("  {}", plain(&server["address"])), name_width)
                )),
                Span::styled(format!("{:>12}", cut(&state, 12)), style),
                Span::raw(match narrow {
                    true => format!(" {rate:>8}"),
                    false => format!(
                        " {:>6} {:>7} {rate:>8}",
                        server["weight"].to_string(),
                        server["active_conns"].to_string()
                    ),
                }),
            ]));
        }
    }

    fn shards(&self, width: usize, lines: &mut Vec<Line<'static>>) {
        let shards = list(&self.status["shards"]);
        let most =
            shards.iter().map(|s| number(&s["connections"])).max().unwrap_or_default().max(1);
        let bar_width = width.saturating_sub(40).min(40);
        let head = format!("{:5} {:>4} {:>9} {:>9}", "shard", "CPU", "conns", "req/s");
        lines.push(Line::styled(head, Style::default().add_modifier(Modifier::BOLD)));
        for shard in shards {
            let open = number(&shard["connections"]);
            let cpu = shard["cpu"].as_u64().map_or_else(|| "any".to_owned(), |cpu| cpu.to_string());
            let filled = usize::try_from(open * bar_width as u64 / most).unwrap_or_default();
            lines.push(Line::from(vec![
                Span::raw(format!(
                    "{:5} {cpu:>4} {open:>9} {:>9}  ",
                    shard["shard"].to_string(),
                    self.rate(&format!("shard {}", shard["shard"]))
                )),
                Span::styled("█".repeat(filled), Style::default().fg(Color::Blue)),
            ]));
        }
    }
}

/// A virtual server as `ctl` and the page call it.
fn name_of(service: &Value) -> String {
    let address = plain(&service["address"]);
    let address = if address.contains(':') { format!("[{address}]") } else { address };
    format!(
        "{} {address}:{} {}",
        plain(&service["protocol"]),
        service["port"],
        plain(&service["scheduler"])
    )
}

/// What its count is kept under.
fn real_server(service: &Value, server: &Value) -> String {
    format!("real {} {}", name_of(service), word(&server["address"]))
}

fn head_rows(width: u16) -> u16 {
    if width >= WIDE { 2 + CHART_ROWS } else { 2 + 2 * CHART_ROWS }
}

/// Draws everything into whatever room there is.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let area = frame.area();
    let [title, now, charts, body] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(head_rows(area.width) - 2),
        Constraint::Min(0),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(view.title()), title);
    frame.render_widget(Paragraph::new(view.now(area.width)), now);
    let halves = if area.width >= WIDE {
        Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas::<2>(charts)
    } else {
        Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).areas::<2>(charts)
    };
    let [left, right] = halves;
    chart(frame, left, "requests/s", &view.history["requests"], Color::Blue);
    chart(frame, right, "p99 ms", &view.history["p99_ms"], Color::Magenta);
    let lines = view.body(area.width);
    let most = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_sub(body.height);
    frame.render_widget(Paragraph::new(lines).scroll((view.scroll.min(most), 0)), body);
}

fn chart(frame: &mut Frame<'_>, area: Rect, title: &str, values: &Value, color: Color) {
    let room = usize::from(area.width.saturating_sub(2));
    let values = list(values);
    let shown = values.get(values.len().saturating_sub(room)..).unwrap_or_default();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bars are whole
    let bars: Vec<u64> = shown
        .iter()
        .map(|value| value.as_f64().unwrap_or_default().max(0.0).ceil() as u64)
        .collect();
    let most = bars.iter().max().copied().unwrap_or_default();
    let block = Block::bordered().title(format!("{title} (most {most})"));
    let bars = Sparkline::default().block(block).data(bars).style(Style::default().fg(color));
    frame.render_widget(bars, area);
}

fn bad() -> Style {
    Style::default().fg(Color::Red).add_modifier(Modifier::BOLD)
}

fn ms(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}ms"))
}

/// A text on as many lines as it needs at this width, between words where it can be.
fn wrapped(text: &str, width: usize, style: Style, lines: &mut Vec<Line<'static>>) {
    let room = width.saturating_sub(2 * INDENT.len()).max(NAME_LEAST);
    let mut rest: Vec<char> = text.trim().chars().collect();
    let mut indent = INDENT.to_owned();
    while !rest.is_empty() {
        let end = if rest.len() <= room {
            rest.len()
        } else {
            let head = rest.get(..=room).unwrap_or_default();
            head.iter().rposition(|c| *c == ' ').filter(|at| *at > 0).unwrap_or(room)
        };
        let after = rest.split_off(end);
        lines.push(Line::styled(format!("{indent}{}", rest.iter().collect::<String>()), style));
        rest = after.into_iter().skip_while(|c| *c == ' ').collect();
        indent = INDENT.repeat(2);
    }
}

/// The same, with an ellipsis where something is left out.
fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut text = cut(text, width.saturating_sub(1));
    text.push('…');
    text
}

fn cut(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word(value: &Value) -> &str {
    value.as_str().filter(|text| !text.is_empty()).unwrap_or("-")
}

/// A text without what a terminal might act on.
fn plain(value: &Value) -> String {
    word(value).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn view() -> View {
        let status = |responses: u64| {
            json!({
                "version": "1", "pid": 7, "phase": "serving", "uptime_seconds": 3,
                "rates": { "requests_per_second": 12.0, "errors_percent": 2.0, "p50_ms": 1.5, "p99_ms": 3.5 },
                "shards": [{ "shard": 0, "cpu": 2, "connections": 9, "requests": responses }],
                "upstreams": [{
                    "name": "api",
                    "servers": [{
                        "address": "10.0.0.1:80", "state": "failed", "why": "a\u{1b}[2Jb", "weight": 1,
                        "in_flight": 4, "responses": responses,
                    }],
                    "drift": [{ "server": "10.0.0.1:80", "what": "weight 1 instead of 2" }],
                }],
                "director": { "problems": ["eth9 has gone"] },
                "virtual_servers": [{
                    "protocol": "UDP", "address": "2001:db8::1", "port": 53, "scheduler": "mh", "active": true, "quorum": false,
                    "servers": [{
                        "address": "10.0.0.7", "state": "no_neighbour", "weight": 3, "active_conns": 41, "conns": responses * 2,
                    }],
                }],
                "vrrp": { "instances": [{
                    "name": "a-rather-long-name-of-an-instance-of-the-edge", "role": "fault", "priority": 200,
                    "interface": "eth0", "why": ["eth0: the link is down, and the other one hears nothing from us"],
                }] },
                "tuning": { "drift": [{ "key": "net.ipv4.ip_local_port_range", "now": "32768 60999", "wanted": "1024 65535" }] },
            })
        };
        let mut view = View::default();
        let began = Instant::now();
        view.take(status(100), json!({ "requests": [1, 2, 3], "p99_ms": [null, 2.0, 3.5] }), began);
        let history = json!({ "requests": [1, 2, 3], "p99_ms": [null, 2.0, 3.5] });
        view.take(status(150), history, began + std::time::Duration::from_secs(2));
        view
    }

    fn drawn(width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let view = view();
        terminal.draw(|frame| draw(frame, &view)).unwrap();
        super::super::lines(terminal.backend().buffer())
    }

    #[test]
    fn what_matters_is_on_the_screen() {
        let text = drawn(100, 30);
        for part in [
            "Ringgate serving",
            "12 req/s",
            "2.0 % 5xx",
            "p50 1.5ms",
            "upstream api",
            "10.0.0.1:80",
            "failed",
            "25",
            "weight 1 instead of 2",
            "UDP [2001:db8::1]:53 mh",
            "active  no quorum",
            "director: eth9 has gone",
            "10.0.0.7",
            "no_neighbour      3      41       50",
            "requests/s (most 3)",
            "█",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("a?[2Jb") && !text.contains('\u{1b}'));
    }

    /// What wakes people up: as words, however they are broken into lines.
    #[test]
    fn what_matters_survives_a_narrow_terminal() {
        for width in [40, 60] {
            let text = drawn(width, 60);
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            for part in [
                "12 req/s 2.0 % 5xx",
                "p99 3.5ms",
                "9 conns",
                "10.0.0.1:80 failed",
                "a?[2Jb",
                "not in the file: 10.0.0.1:80 weight 1 instead of 2",
                "UDP [2001:db8::1]:53 mh",
                "active no quorum",
                "10.0.0.7 no_neighbour",
                "director: eth9 has gone",
                "… fault",
                "eth0: the link is down, and the other one hears nothing from us",
                "drift net.ipv4.ip_local_port_range is 32768 60999, wanted 1024 65535",
            ] {
                let part = if width == 60 {
                    part.replace("… fault", "edge fault")
                } else {
                    part.to_owned()
                };
                assert!(words.contains(&part), "{part} at {width}: {text}");
            }
        }
        let mut view = view();
        view.trouble = Some("connection refused".to_owned());
        let mut terminal = Terminal::new(TestBackend::new(40, 5)).unwrap();
        terminal.draw(|frame| draw(frame, &view)).unwrap();
        let text = super::super::lines(terminal.backend().buffer());
        assert!(text.starts_with("Ringgate no answer: connection refused"), "{text}");
    }

    #[test]
    fn words_longer_than_a_line_are_broken() {
        let mut lines = Vec::new();
        wrapped("a bbbbbbbbbbbb cc", 9, Style::default(), &mut lines);
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["  a", "    bbbbb", "    bbbbb", "    bb cc"]);
        wrapped("", 9, Style::default(), &mut Vec::new());
    }

    #[test]
    fn any_size_will_do() {
        for (width, height) in [(1, 1), (2, 3), (20, 5), (30, 40), (69, 24), (70, 24), (300, 100)] {
            drawn(width, height);
        }
        let narrow = drawn(40, 40);
        assert!(narrow.contains("10.0.0.1") && narrow.contains("requests/s"), "{narrow}");
    }
}
