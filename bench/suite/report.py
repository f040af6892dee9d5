"""The Markdown page with its charts, and what goes to the terminal."""

from . import charts, crypto, sizing, stats
from .contenders import LABELS
from .text import cell, digits, micros, ratio, size, table

US_MS = 1e-3
NETWORKS = {"loopback": "over loopback", "namespaces": "in network namespaces joined by a veth pair"}


def write(result, path):
    """Writes the page and its charts beside the JSON; returns the page's path."""
    page = path.with_suffix(".md")
    if result["kind"] == "compare":
        lines = ["# Two revisions compared", "", about(result), "", *compare_tables(result)]
    else:
        pictures = draw(result["scenarios"])
        names = {}
        for name, svg in pictures.items():
            names[name] = path.with_name(f"{path.stem}-{name}.svg")
            names[name].write_text(svg)
        lines = whole(result, {name: file.name for name, file in names.items()})
    page.write_text("\n".join(lines) + "\n")
    return page


def terminal(result):
    """The tables that matter, for the terminal."""
    if result["kind"] == "compare":
        return compare_tables(result)
    return [*ratio_table(result["scenarios"]), "", *figures_table(result["scenarios"]), *notes(result["scenarios"])]


def about(result):
    """What it was measured on."""
    machine, cpus = result["machine"], result["cpus"]
    names = ", ".join(f"{label} ({one['version']})" for label, one in result["contenders"].items())
    listed = lambda numbers: ", ".join(map(str, numbers))
    return (f"{result['time']}, {result['seconds'] // 60} min {result['seconds'] % 60} s. {machine['cpu']}, {machine['cpus']} CPUs"
            f"{' (virtual machine)' if machine['virtual'] else ''}, Linux {machine['kernel']}, "
            f"{machine['congestion_control']}; revision {machine['commit']}. Contender on CPU {listed(cpus['contender'])}, load on "
            f"{listed(cpus['load'])}, origin on {listed(cpus['origin'])}, {NETWORKS[result['network']]}.{distances(result['scenarios'])} Contenders: {names}.")


def distances(scenarios):
    """How far the CPUs were apart."""
    seen = sorted(one["cpus_apart_ns"] for scenario in scenarios for one in scenario["slices"] if "cpus_apart_ns" in one)
    if not seen:
        return ""
    middle = f"{seen[len(seen) // 20]:.0f} to {seen[-1 - len(seen) // 20]:.0f} ns (nine of ten slices)"
    return f" A cache line took {middle} from the contender's CPU to the load's."


def whole(result, pictures):
    """The page of a whole run."""
    scenarios, settings = result["scenarios"], result["settings"]
    picture = lambda name, words: ["", f"![{words}]({pictures[name]})", ""] if name in pictures else []
    lines = ["# Benchmark report", "", about(result), "",
             *(["**A quick look, not a result: few and short slices.**", ""] if settings["quick"] else []),
             "Written by `bench/run`; `bench/peers/` has the configurations. Lower is better everywhere but for "
             "requests/s. Ratios are taken within a round; in brackets the interval that holds the median with 95 % "
             "probability (with five rounds: the extremes).", "",
             "## Ringgate next to the others", "", *ratio_table(scenarios),
             *picture("ratios", "CPU time per request as a share of the peers'"), *notes(scenarios)]
    for group in dict.fromkeys(one["group"] for one in scenarios):
        members = [one for one in scenarios if one["group"] == group]
        rows = idle_table if members[0]["idle"] else reload_table if members[0]["reload"] else figures_table
        lines += ["", f"## {group}", "", *rows(members)]
        if group == "Small keep-alive requests":
            lines += picture("cpu", "CPU time per small request by number of connections")
            lines += picture("requests", "Small requests a second by number of connections")
        if any(one["tls"] for one in members):
            lines += picture("streams", "CPU time per HTTP/2 request by number of streams")
            lines += crypto_table(members, result["crypto"])
        if members[0]["idle"]:
            lines += picture("memory", "Memory per idle connection")
    if any(one["level_slices"] for one in scenarios):
        lines += ["", "## Latency at shares of each contender's own maximum", "", *LATENCY_NOTE, "",
                  *level_table(scenarios), *picture("latency", "Latency at 30, 70 and 100 % of the maximum")]
    lines += ["", *sizing.page(scenarios), "", *method(result)]
    return lines


LATENCY_NOTE = [
    "Open loop: requests are due at even distances and latency counts from when one was due, so no stall can hide. The "
    "rates are shares of what each contender reached itself, so a faster one is asked more. At 100 % the queue has no slack: "
    "what is there shows how it degrades, not how it serves. † the rate was not kept: requests were left "
    "unsent or overdue. ‡ the load's CPU had no time left: its delays count in the latency."]


def ratio_table(scenarios):
    """Ringgate's figures over the peers'; below 1 is better but for requests/s."""
    kinds = [kind for kind in ("nginx", "haproxy", "relay")
             if any(row["kind"] == kind for one in scenarios for row in one["rows"])]
    name = lambda kind: LABELS.get(kind, kind)
    rows = []
    for one in scenarios:
        labels = {row["kind"]: row["contender"] for row in one["rows"]}
        own = next((row for row in one["rows"] if row["kind"] == "ringgate"), None)
        if own is None:
            continue
        figure = "rss_per_connection" if one["idle"] else "cpu_us_per_request"
        found = lambda kind, what: own["ratios"].get(labels.get(kind), {}).get(what)
        line = [f"{one['group']}: {one['title']}"] + [ratio(found(kind, figure)) for kind in kinds]
        for kind in [kind for kind in kinds if kind != "relay"]:
            line += ["–" if one["paced"] else ratio(found(kind, "requests_per_second"), mark(one, own, kind)),
                     ratio(found(kind, "p99_us"))]
        rows.append(line)
    head = ["ringgate / peer"] + [f"CPU / {name(kind)}" for kind in kinds]
    for kind in [kind for kind in kinds if kind != "relay"]:
        head += [f"requests/s / {name(kind)}", f"p99 / {name(kind)}"]
    return table(head, rows) + ["", "CPU: CPU time per request; of idle connections: resident memory per connection."]


def mark(one, own, kind):
    """A star when a ratio of requests/s has a side that was not the bottleneck."""
    peer = next((row for row in one["rows"] if row["kind"] == kind), None)
    return "\\*" if own["invalid"] or (peer and peer["invalid"]) else ""


def figures_table(scenarios):
    """Medians and extremes."""
    rows = []
    for one in (one for one in scenarios if not one["idle"] and not one["reload"]):
        for row in one["rows"]:
            star = "\\*" if row["invalid"] and not one["paced"] else ""
            calls = row["syscalls_per_request"]
            rows.append([one["title"], row["contender"], cell(row["requests_per_second"], mark=star),
                         cell(row["cpu_us_per_request"]), cell(row["p50_us"], US_MS), cell(row["p99_us"], US_MS),
                         cell(row["p99_9_us"], US_MS), size(row["rss"]["median"]),
                         digits(row["switches_per_request"]["median"]), "–" if calls is None else digits(calls),
                         digits(row["segments_per_request"]["median"]), idle_text(row)])
    return table(["", "contender", "requests/s", "CPU µs/request", "p50 ms", "p99 ms", "p99.9 ms", "RSS",
                  "switches/request", "system calls/request", "segments/request", "idle: contender, load, origin"], rows)


def reload_table(scenarios):
    """What reloads do to requests."""
    rows = []
    for one in scenarios:
        for row in one["rows"]:
            own = [piece for piece in one["slices"] if piece["contender"] == row["contender"]]
            total = lambda figure: sum(piece[figure] for piece in own)
            kinds = sorted({kind for piece in own for kind in piece["errors"]})
            failed = ", ".join(f"{kind} {sum(piece['errors'].get(kind, 0) for piece in own)}" for kind in kinds)
            rows.append([one["title"], row["contender"], cell(row["requests_per_second"]), cell(row["cpu_us_per_request"]),
                         cell(row["p50_us"], US_MS), cell(row["p99_us"], US_MS), cell(row["p99_9_us"], US_MS), total("reloads"),
                         f"{total('requests'):,}", failed or "none", f"{total('connections_opened'):,}"])
    return table(["", "contender", "requests/s", "CPU µs/request", "p50 ms", "p99 ms", "p99.9 ms", "reloads", "requests", "failed",
                  "connections opened"], rows) + [
        "", "Each reload adds or removes one of 100 routes: SIGHUP to Ringgate and nginx, SIGUSR2 to HAProxy's master. CPU is all of "
        "the contender's CPU, since workers come and go. Failed: requests on their way when a connection was closed, on which "
        "a client that means well would try again."]


def idle_text(row):
    """How idle the CPUs were."""
    return " ".join(f"{row['idle'][key]:.0%}" for key in ("contender", "load", "origin"))


def idle_table(scenarios):
    """Memory of idle connections."""
    rows = [[one["title"], row["contender"], cell(row["rss_per_connection"]), cell(row["slab_per_connection"]),
             cell(row["rss_before"], 2 ** -20), cell(row["rss"], 2 ** -20)] for one in scenarios for row in one["rows"]]
    return table(["", "contender", "RSS bytes a connection", "kernel slab bytes a connection", "RSS before, MiB",
                  "RSS after, MiB"], rows) + [
        "", "Each connection was served one request. Slab: the kernel's memory for both ends, the client's included."]


def crypto_table(scenarios, speed):
    """What of the CPU time is cryptography that nobody could spare."""
    rows = []
    for one in (one for one in scenarios if one["rows"]):
        least = crypto.cost(speed, one["body"], crypto.handshake(one["name"]))
        rows.append([one["title"], digits(least)] + [f"{least / row['cpu_us_per_request']['median']:.0%}" for row in one["rows"]])
    labels = list(dict.fromkeys(row["contender"] for one in scenarios for row in one["rows"]))
    return ["", "### How much of it is cryptography", "",
            f"By `openssl speed` on the contender's CPU ({speed['version']}, which nginx and HAProxy use; Ringgate has AWS-LC): a record of "
            f"256 bytes in AES-128-GCM {speed['small_record_us']:.2f} µs, of 16 KiB {speed['full_record_us']:.2f} µs; X25519 "
            f"{speed['exchange_us']:.1f} µs an operation, ECDSA P-256 {speed['sign_us']:.1f} µs a signature. A request has a small record "
            "and its response's records; a handshake two operations of X25519, a full one a signature too. Hashing and key "
            "derivation are left out.", "",
            *table(["", "crypto µs/request", *(f"share of {label}" for label in labels)], rows)]


def level_table(scenarios):
    """Latency at shares of the maximum."""
    rows = []
    for one in scenarios:
        for row in one["rows"]:
            for level in row["levels"]:
                marks = ("†" if level["unsent"] else "") + ("‡" if level["load_idle"] < 0.05 else "")
                rows.append([f"{one['title']}", row["contender"], f"{level['percent']} %{marks}", f"{level['rate']:,}"]
                            + [cell(level[figure], US_MS) for figure in ("p50_us", "p99_us", "p99_9_us")])
    return table(["", "contender", "share", "requests/s", "p50 ms", "p99 ms", "p99.9 ms"], rows)


def notes(scenarios):
    """What the reader must know about single slices."""
    lines = []
    invalid = [f"{one['title']}: {row['contender']} {row['invalid']} of {row['rounds']}"
               f" ({', '.join(name for name in row['bottlenecks'] if name != 'contender') or 'disturbed'})"
               for one in scenarios if not one["paced"] for row in one["rows"] if row["invalid"]]
    if invalid:
        lines += ["", "\\* Not the contender's maximum: in some slices its CPU had idle time, because somebody else was the "
                  "bottleneck (named in brackets; \"nobody\": all waited for each other), or it was disturbed. CPU per request "
                  "is valid nevertheless, if anything too high. " + "; ".join(invalid) + "."]
    disturbed = sum(row["disturbed"] for one in scenarios for row in one["rows"])
    if disturbed:
        total = sum(row["rounds"] for one in scenarios for row in one["rows"])
        lines += ["", f"{disturbed} of {total} slices were disturbed: more than 5 % of the contender's CPU went to others (kernel "
                  "threads that finish its work count as others, too) or was stolen by the hypervisor."]
    moved = [one["title"] for one in scenarios if not stats.alike(*extremes(one["slices"], "cpus_apart_ns"))]
    if moved:
        lines += ["", "The CPUs moved nearer to or further from each other, which changes what requests cost everybody; ratios are "
                  "those of rounds in which both were alike: " + "; ".join(moved) + "."]
    failures = [f"{one['title']}: {failure}" for one in scenarios for failure in one["failures"]]
    return lines + (["", "**Requests failed:** " + "; ".join(failures)] if failures else [])


def extremes(slices, figure):
    """The least and the most of a figure; nothing where it was not measured."""
    seen = [one[figure] for one in slices if figure in one]
    return min(seen, default=None), max(seen, default=None)


def method(result):
    """How it was measured."""
    settings = result["settings"]
    return [
        "## How it was measured", "",
        f"- {settings['rounds']} rounds of {settings['seconds']:g} s after {settings['warmup']:g} s of warm-up (some scenarios fewer or "
        "longer), contenders in turn within a round, each started afresh for each slice and alone on its CPU.",
        cpu_time(result),
        "- System calls were counted in runs of their own, since counting slows: by perf (raw_syscalls:sys_enter), or by strace "
        "where the JSON says so. Work submitted through io_uring is no system call.",
        "- Segments: TCP segments sent on both connections per request, acknowledgements included"
        + ("; on loopback a segment has up to 64 KiB." if result["network"] == "loopback" else
           ". The interfaces pass on what a card would cut into segments and put together again (TSO, LRO), so a body has fewer "
           "acknowledgements than segments of 1,448 bytes."),
        "- The relay is the floor: bytes to and fro on Ringgate's reactor, without HTTP, without a pool of connections.",
        "- The load sends its first request with the last acknowledgement of the handshake, as a client may that speaks at once "
        "(TCP_QUICKACK off before connect): a segment less, for all contenders. A slice that was disturbed, or during which the CPUs moved "
        "nearer to or further from each other, was measured once more.",
        "- On one CPU, load and origin are at times slower than the fastest contender: see the idle columns, and the stars.",
        *(f"- Left out: {why}" for why in result["left_out"].values())]


def cpu_time(result):
    """What CPU time is."""
    if result["network"] == "namespaces":
        return ("- CPU time is all that the contender's CPU was neither idle nor stolen nor used by others. The contender has a network namespace of its "
                "own, and receive packet steering has each side do its receiving on its own CPU, as a network card would: a proxy "
                "pays for all of what it sends and receives, handshakes included, and the load for its own.")
    irq = result["machine"]["irq_time"]
    return (
        "- CPU time is what the scheduler counted for the contender's threads. Time in soft interrupts "
        + ("is kept apart by this kernel and was added from the CPU's account. " if irq else "counts there too: this kernel has no "
           "separate account (CONFIG_IRQ_TIME_ACCOUNTING). ")
        + "Over loopback the receiver's half of TCP runs inside the sender's send: a proxy pays both halves of its own two "
        "sends and nothing for what it is sent. That is the same for all contenders, and unlike a network card, whose receive "
        "half is paid by the receiver.")


def draw(scenarios):
    """The charts, by name."""
    pictures = {}
    closed = [one for one in scenarios if not one["idle"] and one["rows"]]
    kept = [one for one in closed if one["group"] == "Small keep-alive requests"]
    if len(kept) > 1:
        names = [f"{one['connections']:,}" for one in kept]
        series = lambda figure, scale: [(kind, label, [value(one, kind, figure, scale) for one in kept])
                                        for kind, label in present(kept)]
        pictures["cpu"] = charts.lines("CPU time per small request", "µs of the contender's CPU per keep-alive request, by number of "
                                       "connections; medians, lower is better", names, series("cpu_us_per_request", 1), "µs")
        pictures["requests"] = charts.lines("Small requests a second", "thousands a second on the contender's CPUs, by number of "
                                            "connections; medians, higher is better (stars in the table: not its maximum)", names,
                                            series("requests_per_second", 1e-3), "thousand/s")
    shared = [one for one in closed if one["streams"] and one["body"] < 1024]
    if len(shared) > 1:
        pictures["streams"] = charts.lines(
            "CPU time per small HTTP/2 request", "µs of the contender's CPU per request over TLS, by number of streams on a connection; "
            "medians, lower is better", [f"{one['streams']}" for one in shared],
            [(kind, label, [value(one, kind, "cpu_us_per_request", 1) for one in shared]) for kind, label in present(shared)], "µs")
    rows = []
    for one in closed:
        own = next((row for row in one["rows"] if row["kind"] == "ringgate"), None)
        labels = {row["contender"]: row["kind"] for row in one["rows"]}
        found = {labels[peer]: found["cpu_us_per_request"] for peer, found in (own or {"ratios": {}})["ratios"].items()}
        shares = {kind: (one["median"], one["low"], one["high"]) for kind, one in found.items() if one and kind != "relay"}
        if shares:
            rows.append((one["title"], shares))
    if rows:
        peers = [(kind, label) for kind, label in present(closed) if kind in ("nginx", "haproxy")]
        pictures["ratios"] = charts.ratios("Ringgate's CPU time per request as a share of the peers'", "left of 1× Ringgate needs less; "
                                           "mark: median of paired rounds, bar: its 95 % interval", rows, peers)
    pictures |= draw_levels(scenarios)
    idle = next((one for one in scenarios if one["idle"] and one["rows"]), None)
    if idle:
        rows = [(row["contender"], row["kind"], row["rss_per_connection"]["median"],
                 f"{row['rss_per_connection']['median']:,.0f} bytes") for row in idle["rows"]]
        pictures["memory"] = charts.bars("Memory per idle connection", f"resident memory of the process, {idle['title']}, each after "
                                         "one request; lower is better", rows, "a connection")
    return pictures


def draw_levels(scenarios):
    """The chart of latencies."""
    groups = []
    for one in (one for one in scenarios if one["level_slices"]):
        for percent in (30, 70):
            found = [(f"{row['contender']}, {level['rate']:,}/s", row["kind"], *(level[key]["median"] for key in
                                                                              ("p50_us", "p99_us", "p99_9_us")))
                     for row in one["rows"] for level in row["levels"] if level["percent"] == percent]
            groups.append((f"{one['title']}, {percent} %", found))
    if not groups:
        return {}
    return {"latency": charts.ranges("Latency at 30 and 70 % of each contender's own maximum", "open loop, logarithmic; mark: p99, bar: from "
                                     "p50 to p99.9; the rate behind each name; lower is better", groups, present(scenarios))}


def present(scenarios):
    """Kinds and labels of the contenders that were measured, in order."""
    return list(dict.fromkeys((row["kind"], row["contender"]) for one in scenarios for row in one["rows"]))


def value(one, kind, figure, scale):
    """A median, or None."""
    return next((row[figure]["median"] * scale for row in one["rows"] if row["kind"] == kind and row[figure]), None)


def compare_tables(result):
    """The tables of a comparison."""
    sides = result["contenders"]
    lines = [f"base: {result['settings']['base']} ({sides['base']['binary']}); ours: {sides['ours']['binary']}; "
             f"{result['settings']['pairs']} pairs of {result['settings']['seconds']:g} s slices.", ""]
    rows = []
    for one in result["scenarios"]:
        shares, ours, base = one["ratios"], one["sides"]["ours"], one["sides"]["base"]
        cpu = shares["cpu_us_per_request"]
        rows.append([one["name"], digits(base["cpu_us_per_request"]["median"]), digits(ours["cpu_us_per_request"]["median"]),
                     f"{cpu['median']:.3f} [{cpu['low']:.3f}–{cpu['high']:.3f}]", f"{cpu['q1']:.3f}–{cpu['q3']:.3f}",
                     ratio(shares["requests_per_second"]), ratio(shares["p99_us"]),
                     f"{micros(base['p99_us']['median'])} → {micros(ours['p99_us']['median'])}", one["pairs"], one["disturbed"], one["verdict"]])
    lines += table(["scenario", "base CPU µs", "ours CPU µs", "CPU ours/base [95 %]", "quartiles", "requests/s", "p99", "p99 medians",
                    "pairs used", "pairs disturbed", "verdict"], rows)
    lines += ["", "A pair is disturbed when more than 5 % of the contender's CPU (and two ticks) went to others or was stolen in a slice, or "
              "when its CPUs moved; "
              "such pairs are left out where enough others remain. The interval is that of the median of the paired "
              "ratios: a verdict says that it does not contain 1."]
    pure = result["pure"]
    if "left_out" in pure:
        return lines + ["", f"No instruction counts: {pure['left_out']}."]
    rows = [[case, f"{pure['base'].get(case, 0):,}", f"{count:,}", f"{pure['ratios'][case]:.3f}" if case in pure["ratios"] else "–"]
            for case, count in pure["ours"].items()]
    return lines + ["", "Instructions of the pure parts, by callgrind:", "", *table(["part", "base", "ours", "ours/base"], rows)]
