"""From measured figures to hardware, with the arithmetic shown and what is extrapolated said."""

import json
import math
import statistics

from . import machine
from .text import digits, table

# Assumptions, all of which the page names.
BUSY = 0.7
NETWORK = 1.5
NODE_CORES = 32
QUEUE_PACKETS = 1e6
DIRECTOR_CORES = 8
# Nanoseconds a packet of the director where bench/l4.py was not run.
DIRECTOR_NS = 1000.0
NIC_GBIT = 100
RATES = (1_000_000, 10_000_000)
SCENARIOS = ("keepalive-256", "keepalive-64", "new-connections", "body-16k")
# Payload of a full TCP segment with timestamps at an MTU of 1,500, and what surrounds it on the wire.
SEGMENT_BYTES, FRAME_BYTES = 1448, 90
# The smallest frame with its preamble and the gap behind it (IEEE 802.3, clauses 3.1.1 and 4.4.2).
SMALLEST_FRAME_BYTES = 64 + 8 + 12
PORTS_GBIT = (10, 25, 100)
RESULTS = machine.ROOT / "bench/results"


def page(scenarios):
    """The Markdown section; empty when nothing fitting was measured."""
    found = {one["name"]: (one, row) for one in scenarios for row in one["rows"] if row["kind"] == "ringgate"}
    chosen = [found[name] for name in SCENARIOS if name in found and not (name == "keepalive-64" and "keepalive-256" in found)]
    if not chosen:
        return []
    measured = director()
    rows = [line(one, figures, rate, measured) for one, figures in chosen for rate in RATES]
    return ["## Sizing: one million and ten million requests a second", "", *explanation(chosen[0], measured), "",
            *table(["load", "requests/s", "CPU-seconds a second", "cores", "L7 nodes", "packets/s a core", "Gbit/s",
                    "100G ports", "director cores", "L4 directors"], rows), "", *ports(chosen, measured), *caveats(measured)]


def director(results=None):
    """Nanoseconds a packet of the layer-4 director, by what takes the packets, and where that was measured."""
    files = sorted((results or RESULTS).glob("*-l4.json"))
    if not files:
        return {"XDP": DIRECTOR_NS, "source": None}
    rounds = json.loads(files[-1].read_text())["forward"]
    # As fast as can be sent: at a fixed rate what dropping costs is several times the figure.
    of = lambda figures: figures.get("ns_flooded", figures["ns_per_packet"])
    cost = lambda name: statistics.median(of(one[name]) for one in rounds if name in one)
    kinds = {"XDP": "ringgate, XDP", "packet sockets": "ringgate"}
    known = {kind: cost(name) for kind, name in kinds.items() if any(name in one for one in rounds)}
    return {"XDP": DIRECTOR_NS} | known | {"source": files[-1].name}


def ports(chosen, measured):
    """What a port of a network card asks of a director and of a proxy."""
    one, row = chosen[0]
    kinds = [kind for kind in ("XDP", "packet sockets") if kind in measured]
    a_request, cpu = wire_bytes(one, row), row["cpu_us_per_request"]["median"]
    cores = lambda per_second, ns: math.ceil(per_second * ns / 1e9 / BUSY)
    rows = []
    for gbit in PORTS_GBIT:
        frames, requests = gbit * 1e9 / 8 / SMALLEST_FRAME_BYTES, gbit * 1e9 * BUSY / 8 / a_request
        rows.append([f"{gbit} Gbit/s", f"{frames / 1e6:.2f} million", *(cores(frames, measured[kind]) for kind in kinds),
                     digits(requests), cores(requests, cpu * NETWORK * 1000)])
    gbit = PORTS_GBIT[0]
    frames, ns = gbit * 1e9 / 8 / SMALLEST_FRAME_BYTES, measured["XDP"]
    return ["### By the port", "",
            *table(["port", "smallest frames/s", *(f"director cores, {kind}" for kind in kinds), f"requests/s at {BUSY:.0%}",
                    "L7 cores"], rows), "",
            f"Smallest frames take {SMALLEST_FRAME_BYTES} bytes of the wire (64, preamble 8, gap 12; IEEE 802.3): {gbit} × 10⁹ ÷ 8 ÷ "
            f"{SMALLEST_FRAME_BYTES} = {frames / 1e6:.2f} million/s; × {ns:,.0f} ns ÷ {BUSY} = {cores(frames, ns)} cores of a director with "
            f"XDP. That is the worst that a port can bring, not a load. Requests ({one['title']}): {gbit} × 10⁹ × {BUSY} ÷ 8 ÷ "
            f"{a_request:,.0f} bytes, × {cpu:.2f} µs × {NETWORK} ÷ {BUSY}.", ""]


def packets(one, row):
    """Packets per request of both connections: as measured, or as many as a body needs on Ethernet."""
    measured = row["segments_per_request"]["median"]
    return max(measured, 2 * math.ceil(one["body"] / SEGMENT_BYTES) * 1.5) if one["body"] > SEGMENT_BYTES else measured


def wire_bytes(one, row):
    """Bytes per request on the wire, both connections: as measured, with frames of Ethernet."""
    return row["link_bytes_per_request"]["median"] + packets(one, row) * FRAME_BYTES


def needs(one, row, rate, measured=None):
    """What a rate needs."""
    director_ns = (measured or director())["XDP"]
    cpu = rate * row["cpu_us_per_request"]["median"] / 1e6
    cores = math.ceil(cpu * NETWORK / BUSY)
    per_second = rate * packets(one, row)
    gbit = rate * wire_bytes(one, row) * 8 / 1e9
    # Of the four ways (client to proxy and back, proxy to origin and back) a director sees one.
    director_cores = math.ceil(per_second / 4 * director_ns / 1e9 / BUSY)
    return {"cpu": cpu, "cores": cores, "nodes": math.ceil(cores / NODE_CORES) + 1, "packets_a_core": per_second / cores,
            "gbit": gbit, "ports": math.ceil(gbit / (NIC_GBIT * BUSY)), "director_cores": director_cores,
            "directors": math.ceil(director_cores / DIRECTOR_CORES) + 1}


def line(one, row, rate, measured):
    """A row of the table."""
    need = needs(one, row, rate, measured)
    title = one["title"] if one["name"] != "keepalive-256" else "small keep-alive, 256 connections"
    return [title, f"{rate:,}", digits(need["cpu"]), need["cores"], need["nodes"], digits(need["packets_a_core"]),
            digits(need["gbit"]), need["ports"], need["director_cores"], need["directors"]]


def explanation(chosen, measured):
    """The arithmetic, once through with the numbers of the first load."""
    one, row = chosen
    cpu, segments = row["cpu_us_per_request"]["median"], packets(one, row)
    need, rate = needs(one, row, RATES[0], measured), RATES[0]
    return [
        f"Measured ({one['title']}, {one['body']}-byte bodies): **{cpu:.2f} µs** of CPU, **{segments:.1f} TCP segments** and "
        f"**{row['link_bytes_per_request']['median']:,.0f} bytes** a request, both connections together. For "
        f"{rate:,} requests/s:", "",
        f"- CPU: {rate:,} × {cpu:.2f} µs = {need['cpu']:.1f} CPU-seconds a second. × {NETWORK} for the network card's driver and "
        f"interrupts, which were not there, ÷ {BUSY} so that cores are {BUSY:.0%} busy: **{need['cores']} cores**.",
        f"- L7 nodes of {NODE_CORES} cores: {need['cores']} ÷ {NODE_CORES}, rounded up, and one that may fail: "
        f"**{need['nodes']}**.",
        f"- NIC queues: one for each core. {rate:,} × {segments:.1f} ÷ {need['cores']} = {digits(need['packets_a_core'])} packets/s "
        f"for each, in and out together; a queue is good for {QUEUE_PACKETS:,.0f} and more.",
        f"- Bytes: {rate:,} × ({row['link_bytes_per_request']['median']:,.0f} + {segments:.1f} × {FRAME_BYTES} of framing) × 8 = "
        f"{digits(need['gbit'])} Gbit/s over all nodes, **{need['ports']}** ports of {NIC_GBIT} Gbit/s at {BUSY:.0%}.",
        f"- L4 directors (direct return: they see only what clients send, a quarter of the packets): {rate:,} × {segments:.1f} ÷ 4 "
        f"× {measured['XDP']:,.0f} ns ÷ {BUSY} = **{need['director_cores']} cores**, in boxes of {DIRECTOR_CORES} and one that may fail: "
        f"**{need['directors']}**.",
    ]


def caveats(measured):
    """What is not measured."""
    of_director = (f"What the director's packets cost is measured (`bench/results/{measured['source']}`: CPU of all threads that have a part in it, over "
                   "veth pairs; Linux' XDP runs before a buffer is allocated, so that a driver's own work comes on top). "
                   if measured["source"] else
                   f"What the director's packets cost, {measured['XDP']:,.0f} ns, is an assumption: `bench/l4.py` was not run. ")
    return [
        "What is extrapolated, plainly: everything beyond one core. Cores are taken to add up (shards share no locks on the "
        "request path, but memory bandwidth, caches and turbo frequencies are shared). The factor "
        f"{NETWORK} for real network cards and {QUEUE_PACKETS:,.0f} packets/s a queue are assumptions, not measurements of "
        f"ours. {of_director}For bodies over one segment, packets "
        "are reckoned at an MTU of 1,500 with an acknowledgement for every other one, whatever was measured. "
        "Without TLS; the section on HTTPS and HTTP/2 has what a request costs with it."]
