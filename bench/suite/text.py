"""Figures as text, and Markdown tables."""


def table(head, rows):
    """A Markdown table, its columns padded so that it reads well as text too."""
    lines = [list(map(str, row)) for row in [head, *rows]]
    widths = [max(len(row[column]) for row in lines) for column in range(len(head))]
    padded = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in lines]
    return [padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]]


def digits(value):
    """Three significant digits, thousands with a comma."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(value, scale=1.0, mark=""):
    """Median and extremes of a spread, or a dash."""
    if value is None:
        return "–"
    low, median, high = (digits(value[key] * scale) for key in ("min", "median", "max"))
    return f"{median}{mark}" if low == high else f"{median}{mark} [{low}–{high}]"


def ratio(value, mark=""):
    """A ratio with the interval of its median, or a dash."""
    if value is None:
        return "–"
    return f"{value['median']:.2f}{mark} [{value['low']:.2f}–{value['high']:.2f}]"


def micros(us):
    """A time from microseconds."""
    return f"{digits(us)} µs" if us < 1000 else f"{digits(us / 1e3)} ms" if us < 1e6 else f"{digits(us / 1e6)} s"


def size(amount):
    """Bytes with a unit of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{digits(amount)} {unit}" if unit != "B" else f"{amount:.0f} B"
        amount /= 1024
