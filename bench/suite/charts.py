"""Charts as SVG files of their own, with colours for light and dark backgrounds in an embedded style sheet."""

import math
from html import escape

WIDTH = 880
# Of a letter, on average, in the widest of the fonts below.
LETTER = 7.2
# Height of a heading between rows.
HEADING = 26
# Contenders by kind: class in the style sheet, and a marker, so that colour is not all that tells them apart.
SERIES = {"ringgate": ("a", "circle"), "nginx": ("b", "square"), "haproxy": ("c", "diamond"), "relay": ("d", "cross")}
STYLE = """
  .page { fill: #ffffff } .ink { fill: #1f2328 } .soft { fill: #59636e } .grid { stroke: #d9dee3; stroke-width: 1 }
  .axis { stroke: #818b98; stroke-width: 1.5 }
  .a { --c: #0a58ca } .b { --c: #117a3d } .c { --c: #c2410c } .d { --c: #6b7280 }
  .line { fill: none; stroke: var(--c); stroke-width: 2.5 } .mark { fill: var(--c); stroke: var(--c); stroke-width: 1 }
  .bar { fill: var(--c) } .span { stroke: var(--c); stroke-width: 5; stroke-linecap: round; opacity: .35 }
  text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
  .title { font-size: 17px; font-weight: 600 } .small { font-size: 12px }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .ink { fill: #f0f3f6 } .soft { fill: #9ea7b3 } .grid { stroke: #2b323b }
    .axis { stroke: #767f8b }
    .a { --c: #6cb0ff } .b { --c: #4ac776 } .c { --c: #ff9b5e } .d { --c: #a8b1bd }
  }
"""


class Svg:
    """Shapes, one after the other."""

    def __init__(self, height, title, note):
        self.height, self.parts, self.title = height, [], title
        self.text(24, 32, title, "ink title")
        self.text(24, 53, note, "soft small")

    def add(self, shape):
        self.parts.append(f"  {shape}")

    def text(self, x, y, words, style="ink", anchor="start"):
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>')

    def line(self, x1, y1, x2, y2, style):
        self.add(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>')

    def mark(self, x, y, kind, told=""):
        """A contender's marker; what it stands for shows when pointed at."""
        style, shape = SERIES[kind]
        shapes = {
            "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5"',
            "square": f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"',
            "diamond": f'<path d="M{x:.1f} {y - 7:.1f}l7 7-7 7-7-7z"',
            "cross": f'<path d="M{x - 6:.1f} {y - 2:.1f}h4v-4h4v4h4v4h-4v4h-4v-4h-4z"',
        }
        self.add(f'{shapes[shape]} class="mark {style}"><title>{escape(told)}</title></{shapes[shape].split()[0][1:]}>')

    def legend(self, entries, y=76):
        """Markers and names in a row."""
        x = 30
        for kind, label in entries:
            self.mark(x, y - 4, kind, label)
            self.text(x + 13, y, label)
            x += 40 + 8 * len(label)

    def __str__(self):
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
                f'height="{self.height}" role="img" aria-label="{escape(self.title)}">\n<style>{STYLE}</style>\n'
                f'  <rect class="page" width="{WIDTH}" height="{self.height}" rx="8"/>\n'
                + "\n".join(self.parts) + "\n</svg>\n")


def ticks(top, about=5):
    """Round steps from 0 to at least `top`."""
    top = top if top > 0 else 1.0
    step = 10 ** math.floor(math.log10(top / about))
    step *= next(factor for factor in (1, 2, 5, 10) if top / (step * factor) <= about)
    return [step * number for number in range(math.ceil(top / step) + 1)]


def lines(title, note, categories, series, unit):
    """Lines over categories: `series` are (kind, label, values), a value of None leaving a gap."""
    left, right, top, bottom, height = 64, 150, 100, 46, 400
    svg = Svg(height, title, note)
    svg.legend([(kind, label) for kind, label, _ in series])
    steps = ticks(max(value for *_, values in series for value in values if value is not None))
    across = lambda index: left + 30 + index * (WIDTH - left - right - 30) / max(1, len(categories) - 1)
    up = lambda value: height - bottom - value / steps[-1] * (height - top - bottom)
    for step in steps:
        svg.line(left, up(step), WIDTH - right + 20, up(step), "grid" if step else "axis")
        svg.text(left - 10, up(step) + 4, f"{step:g}", "soft", "end")
    for index, name in enumerate(categories):
        svg.text(across(index), height - bottom + 22, name, "ink", "middle")
    ends = []
    for kind, label, values in series:
        points = [(across(index), up(value), value) for index, value in enumerate(values) if value is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        svg.add(f'<polyline points="{path}" class="line {SERIES[kind][0]}"/>')
        for (x, y, value), name in zip(points, categories):
            svg.mark(x, y, kind, f"{label}, {name}: {value:.1f} {unit}")
        ends.append((points[-1][1], points[-1][0], f"{label} {points[-1][2]:.1f}"))
    below = 0.0
    for y, x, words in sorted(ends):
        below = max(y + 4, below + 16)
        svg.text(x + 14, below, words)
    return str(svg)


def ratios(title, note, rows, peers):
    """A row a scenario: (name, {peer kind: (median, low, high)}); the mark is at Ringgate's share of the peer's."""
    right, top, row_height = 40, 104, 25
    left = 40 + max((len(name) for name, _ in rows), default=0) * LETTER
    height = top + row_height * len(rows) + 46
    svg = Svg(height, title, note)
    svg.legend([(kind, f"to {label}") for kind, label in peers])
    most = max((high for _, found in rows for _, _, high in found.values()), default=1.0)
    steps = [number / 4 for number in range(0, max(5, math.ceil(min(most, 3.0) * 4) + 1))]
    across = lambda value: left + min(value, steps[-1]) / steps[-1] * (WIDTH - left - right)
    bottom = height - 40
    for step in steps:
        svg.line(across(step), top - 8, across(step), bottom, "axis" if step == 1 else "grid")
        svg.text(across(step), bottom + 20, f"{step:g}×", "ink" if step == 1 else "soft", "middle")
    for index, (name, found) in enumerate(rows):
        y = top + 8 + index * row_height
        svg.text(left - 16, y + 4, name, "ink", "end")
        for offset, (kind, label) in enumerate(peers):
            if kind not in found:
                continue
            median, low, high = found[kind]
            at = y - 4 + offset * 4 if len(peers) > 1 else y
            svg.line(across(low), at, across(high), at, f"span {SERIES[kind][0]}")
            svg.mark(across(median), at, kind, f"{name}, to {label}: {median:.2f} [{low:.2f}–{high:.2f}]")
    return str(svg)


def ranges(title, note, groups, entries):
    """Latency on a logarithmic axis: `groups` are (heading, [(label, kind, p50, p99, p99.9 in µs)])."""
    left, right, top, row_height = 250, 50, 104, 21
    rows = sum(len(found) for _, found in groups)
    height = top + row_height * rows + HEADING * len(groups) + 52
    svg = Svg(height, title, note)
    svg.legend(entries)
    # Nothing was measured where there is 0.
    values = [value for _, found in groups for _, _, *latencies in found for value in latencies if value > 0] or [1.0]
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    across = lambda us: left + (math.log10(max(us, 10 ** first)) - first) / max(1, last - first) * (WIDTH - left - right)
    bottom = height - 36
    for power in range(first, last + 1):
        svg.line(across(10 ** power), top - 10, across(10 ** power), bottom, "grid")
        name = f"{10 ** power:g} µs" if power < 3 else f"{10 ** (power - 3):g} ms" if power < 6 else f"{10 ** (power - 6):g} s"
        svg.text(across(10 ** power), bottom + 20, name, "soft", "middle")
    y = top
    for heading, found in groups:
        svg.text(24, y + 20, heading)
        y += HEADING
        for label, kind, low, middle, high in found:
            at = y + row_height / 2
            svg.text(left - 14, at + 4, label, "soft small", "end")
            svg.line(across(low), at, across(high), at, f"span {SERIES[kind][0]}")
            svg.mark(across(middle), at, kind, f"{label}: p50 {low:.0f}, p99 {middle:.0f}, p99.9 {high:.0f} µs")
            y += row_height
    return str(svg)


def bars(title, note, rows, unit):
    """Bars: (label, kind, value, text)."""
    left, right, top, row_height = 150, 150, 84, 36
    height = top + row_height * len(rows) + 20
    svg = Svg(height, title, note)
    most = max(value for *_, value, _ in rows) or 1
    for index, (label, kind, value, words) in enumerate(rows):
        y = top + index * row_height
        length = max(2.0, value / most * (WIDTH - left - right))
        svg.text(left - 14, y + 16, label, "ink", "end")
        svg.add(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="22" rx="3" class="bar {SERIES[kind][0]}">'
                f"<title>{escape(f'{label}: {words} {unit}')}</title></rect>")
        svg.text(left + length + 10, y + 16, words)
    return str(svg)
