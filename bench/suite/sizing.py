"""From measured figures to hardware, with the arithmetic shown and what is extrapolated said."""

import math

from .text import digits, table

# Assumptions, all of which the page names.
BUSY = 0.7
NETWORK = 1.5
NODE_CORES = 32
QUEUE_PACKETS = 1e6
DIRECTOR_PACKETS = 1e6
DIRECTOR_CORES = 8
NIC_GBIT = 100
RATES = (1_000_000, 10_000_000)
SCENARIOS = ("keepalive-256", "keepalive-64", "new-connections", "body-16k")
# Payload of a full TCP segment with timestamps at an MTU of 1,500, and what surrounds it on the wire.
SEGMENT_BYTES, FRAME_BYTES = 1448, 90


def page(scenarios):
    """The Markdown section; empty when nothing fitting was measured."""
    found = {one["name"]: (one, row) for one in scenarios for row in one["rows"] if row["kind"] == "ringgate"}
    chosen = [found[name] for name in SCENARIOS if name in found and not (name == "keepalive-64" and "keepalive-256" in found)]
    if not chosen:
        return []
    rows = [row for one, figures in chosen for rate in RATES for row in [line(one, figures, rate)]]
    return ["## Sizing: one million and ten million requests a second", "", *explanation(chosen[0]), "",
            *table(["load", "requests/s", "CPU-seconds a second", "cores", "L7 nodes", "packets/s a core", "Gbit/s",
                    "100G ports", "director cores", "L4 directors"], rows), "", *caveats()]


def packets(one, row):
    """Packets per request of both connections: as measured, or as many as a body needs on Ethernet."""
    measured = row["segments_per_request"]["median"]
    return max(measured, 2 * math.ceil(one["body"] / SEGMENT_BYTES) * 1.5) if one["body"] > SEGMENT_BYTES else measured


def wire_bytes(one, row):
    """Bytes per request on the wire, both connections: those on loopback, with frames of Ethernet."""
    return row["loopback_bytes_per_request"]["median"] + packets(one, row) * FRAME_BYTES


def needs(one, row, rate):
    """What a rate needs."""
    cpu = rate * row["cpu_us_per_request"]["median"] / 1e6
    cores = math.ceil(cpu * NETWORK / BUSY)
    per_second = rate * packets(one, row)
    gbit = rate * wire_bytes(one, row) * 8 / 1e9
    # Of the four ways (client to proxy and back, proxy to origin and back) a director sees one.
    director = math.ceil(per_second / 4 / (DIRECTOR_PACKETS * BUSY))
    return {"cpu": cpu, "cores": cores, "nodes": math.ceil(cores / NODE_CORES) + 1, "packets_a_core": per_second / cores,
            "gbit": gbit, "ports": math.ceil(gbit / (NIC_GBIT * BUSY)), "director_cores": director,
            "directors": math.ceil(director / DIRECTOR_CORES) + 1}


def line(one, row, rate):
    """A row of the table."""
    need = needs(one, row, rate)
    title = one["title"] if one["name"] != "keepalive-256" else "small keep-alive, 256 connections"
    return [title, f"{rate:,}", digits(need["cpu"]), need["cores"], need["nodes"], digits(need["packets_a_core"]),
            digits(need["gbit"]), need["ports"], need["director_cores"], need["directors"]]


def explanation(chosen):
    """The arithmetic, once through with the numbers of the first load."""
    one, row = chosen
    cpu, segments = row["cpu_us_per_request"]["median"], packets(one, row)
    need, rate = needs(one, row, RATES[0]), RATES[0]
    return [
        f"Measured ({one['title']}, {one['body']}-byte bodies): **{cpu:.2f} µs** of CPU, **{segments:.1f} TCP segments** and "
        f"**{row['loopback_bytes_per_request']['median']:,.0f} bytes** a request, both connections together. For "
        f"{rate:,} requests/s:", "",
        f"- CPU: {rate:,} × {cpu:.2f} µs = {need['cpu']:.1f} CPU-seconds a second. × {NETWORK} for the network card's driver and "
        f"interrupts, which loopback has not, ÷ {BUSY} so that cores are {BUSY:.0%} busy: **{need['cores']} cores**.",
        f"- L7 nodes of {NODE_CORES} cores: {need['cores']} ÷ {NODE_CORES}, rounded up, and one that may fail: "
        f"**{need['nodes']}**.",
        f"- NIC queues: one for each core. {rate:,} × {segments:.1f} ÷ {need['cores']} = {digits(need['packets_a_core'])} packets/s "
        f"for each, in and out together; a queue is good for {QUEUE_PACKETS:,.0f} and more.",
        f"- Bytes: {rate:,} × ({row['loopback_bytes_per_request']['median']:,.0f} + {segments:.1f} × {FRAME_BYTES} of framing) × 8 = "
        f"{digits(need['gbit'])} Gbit/s over all nodes, **{need['ports']}** ports of {NIC_GBIT} Gbit/s at {BUSY:.0%}.",
        f"- L4 directors (direct return: they see only what clients send, a quarter of the packets): {rate:,} × {segments:.1f} ÷ 4 "
        f"÷ ({DIRECTOR_PACKETS:,.0f} × {BUSY}) = **{need['director_cores']} cores**, in boxes of {DIRECTOR_CORES} and one that may fail: "
        f"**{need['directors']}**.",
    ]


def caveats():
    """What is not measured."""
    return [
        "What is extrapolated, plainly: everything beyond one core. Cores are taken to add up (shards share no locks on the "
        "request path, but memory bandwidth, caches and turbo frequencies are shared). The factor "
        f"{NETWORK} for real network cards, {QUEUE_PACKETS:,.0f} packets/s a queue and {DIRECTOR_PACKETS:,.0f} packets/s "
        "a director core are assumptions, not measurements of ours. For bodies over one segment, packets "
        "are reckoned at an MTU of 1,500 with an acknowledgement for every other one, since loopback's segments are up to 64 KiB. "
        "Without TLS; the section on HTTPS and HTTP/2 has what a request costs with it."]
