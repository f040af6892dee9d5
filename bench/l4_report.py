"""What bench/l4.py shows of its figures: Markdown, by arithmetic alone."""

import os
import platform
import statistics


def middle(rounds, name, key):
    return statistics.median(one[name][key] for one in rounds)


def spread(rounds, name, key):
    values = [one[name][key] for one in rounds]
    return f"{min(values):,.0f} – {max(values):,.0f}"


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def markdown(result):
    yield f"# The layer-4 director, {result['date']}\n"
    yield f"{result['cpu']}, {os.cpu_count()} CPUs, Linux {platform.release()}, revision {result['revision']}. Written by `bench/l4.py`.\n"
    if rounds := result.get("forward"):
        base = "kernel IP forwarding"
        ratio = lambda name, key: statistics.median(one[name][key] / one[base][key] for one in rounds)
        yield "## Forwarding: 60-byte UDP packets, 64 flows\n"
        # What was measured before there was the second one has only the first.
        costs = {"ns_per_packet": f"ns a packet at {result['rate']:,}/s", "ns_flooded": "ns a packet, as fast as can be sent"}
        costs = {key: text for key, text in costs.items() if all(key in one["dropped"] for one in rounds)}
        rows = []
        for name in (name for name in rounds[0] if name != "dropped"):
            row = [name]
            for key in costs:
                row += [f"{middle(rounds, name, key):,.0f}", spread(rounds, name, key), f"{ratio(name, key):.2f}"]
            row += [f"{middle(rounds, name, 'packets_per_second'):,.0f}", f"{ratio(name, 'packets_per_second'):.2f}"]
            rows.append([*row, f"{middle(rounds, name, 'arrived_of_sent'):.2%}"])
        head = [word for text in costs.values() for word in (text, "least and most", "ratio")]
        yield from table(["", *head, "packets/s", "ratio", "arrived at the fixed rate"], rows)
        floors = " and ".join(f"{statistics.median(one['dropped'][key] for one in rounds):,.0f}" for key in costs)
        whose = "of generator, director and ksoftirqd for a packet that arrives" if len(costs) == 2 else "of the whole machine"
        yield (f"CPU time {whose}; dropping them on arrival costs {floors} ns a packet, "
               f"which is taken off. Ratios are to the kernel's IP forwarding. XDP: generic mode, scheduler mh; packet sockets: rr. "
               f"Medians of {len(rounds)} interleaved rounds.\n")  # fmt: skip
    if rounds := result.get("flows"):
        yield from by_flows(rounds, result["rate"])
    if ways := result.get("latency"):
        yield "## Round trip of one UDP packet, µs\n"
        keys = ("p50", "p99", "added_p50", "added_p99")
        yield from table(["", "p50", "p99", "added, p50", "added, p99"],
                         ([name, *(f"{way[key]:.1f}" for key in keys)] for name, way in ways.items()))  # fmt: skip
        yield "XDP: generic mode, scheduler mh; packet sockets: rr. Medians over runs; added: to the way straight to the server in the same run.\n"
    if changes := result.get("upgrade"):
        rounds, rate = changes["rounds"], changes["rate"]
        yield f"## An upgrade under {rate:,} packets/s: the longest time without a packet, ms\n"
        values = lambda key: sorted(one[key] for one in rounds)
        yield from table(["", "median", "least and most"],
                         ([name, f"{statistics.median(values(key)):.2f}", f"{values(key)[0]:.2f} – {values(key)[-1]:.2f}"]
                          for name, key in (("a second without one", "before_ms"), ("the second of the upgrade", "upgrade_ms"))))  # fmt: skip
        total = lambda key: sum(values(key))
        yield (f"Of {total('sent'):,} packets {total('lost')} were lost, {total('twice')} came twice, {total('overtaken')} overtook one before "
               f"them. {len(rounds)} upgrades; the generator sends what is due every 100 µs.\n")  # fmt: skip
    if rounds := result.get("syn"):
        yield "## SYNs of new connections\n"
        yield from table(["", "SYNs/s", "sent/s meanwhile", "ns a SYN, all", "least and most"],
                         ([name, *(f"{middle(rounds, name, key):,.0f}" for key in ("per_second", "sent_per_second", "ns")), spread(rounds, name, "ns")]
                          for name in rounds[0]))  # fmt: skip
        yield ("CPU time of generator, director and ksoftirqd for a SYN that arrives. XDP: generic mode, scheduler mh; packet sockets: rr. Medians of "
               f"{len(rounds)} rounds.\n")  # fmt: skip
    if pure := result.get("verdict"):
        yield "## The verdict alone, without sockets\n"
        yield from table(["flows", "real servers", "ns in batches of 64", "ns one by one"],
                         ([f"{case['flows']:,}", f"{case['servers']:,}", f"{case['ns_batched']:.0f}", f"{case['ns_single']:.0f}"]
                          for case in pure["cases"]))  # fmt: skip
        yield (f"A new flow: {pure['ns_new_flow']:.0f} ns; in a full table, where another has to go: {pure['ns_new_flow_full_table']:.0f} ns. "
               f"Resident memory of a flow: {pure['bytes_per_flow']:.1f} bytes. Medians of {pure['rounds']} rounds.\n")  # fmt: skip


def by_flows(rounds, rate):
    """What packets cost by the number of flows."""
    yield "## By the number of flows: each packet is of another one, in an order without a pattern\n"
    names = [name for name in rounds[0] if name != "dropped"]
    counts = sorted(rounds[0]["dropped"], key=int)
    of = lambda one, name, count, key, floor: one[name][count][key] - floor * one["dropped"][count][key]
    middle = lambda what: statistics.median(map(what, rounds))
    for key, heading in (("ns_flooded", "As fast as can be sent"), ("ns_per_packet", f"At {rate:,}/s")):
        rows = []
        for name in ["dropped", *names]:
            for count in counts:
                row = [name, f"{int(count):,}"]
                for floor in (0, 1) if name in names else (0,):
                    values = [of(one, name, count, key, floor) for one in rounds]
                    ratio = middle(lambda one: of(one, name, count, key, floor) / of(one, name, counts[0], key, floor))
                    row += [f"{statistics.median(values):,.0f}", f"{min(values):,.0f} – {max(values):,.0f}", f"{ratio:.2f}"]
                row += [""] * (8 - len(row))
                rows.append([*row, f"{middle(lambda one: one[name][count]['packets_per_second']):,.0f}"][: 9 if key == "ns_flooded" else 8])
        first = f"of {int(counts[0]):,}'s"
        head = ["", "flows", "ns a packet, all", "least and most", first, "above dropping it", "least and most", first, "packets/s"]
        yield f"{heading}:\n"
        yield from table(head[: len(rows[0])], rows)
    rows = []
    for name in names:
        for count in counts:
            value = lambda key: middle(lambda one: one[name][count][key])
            seen = value("by_program") + value("passed_up")
            grown = lambda one, key: one[name][count][key] - one[name][counts[0]][key]
            own = "" if count == counts[0] else f"{middle(lambda one: grown(one, 'own_bytes') / grown(one, 'known')):.1f}"
            rows.append([name, f"{int(count):,}", f"{value('known'):,.0f}", f"{value('by_program') / seen:.2%}" if seen else "",
                         f"{value('account_ms'):,.0f}", f"{value('map_bytes'):.1f}", own])  # fmt: skip
    yield "Beside them:\n"
    head = ["", "flows", "known", "of frames forwarded by XDP", "account of flows, ms of CPU in 5 s", "maps, bytes a flow",
            "process, bytes a flow"]  # fmt: skip
    yield from table(head, rows)
    yield (f"60-byte UDP packets; CPU time of generator, director and ksoftirqd for a packet that arrives. Not in it: the director's thread that counts, "
           f"for the views, the flows that only the program knows (the account). XDP: generic mode; both: scheduler mh. Maps: what the kernel says that those over 1 MiB "
           f"take, by `flows_max`; process: what its resident memory grew by beyond that with {int(counts[0]):,} flows. Ratios are those of a round. Medians of {len(rounds)} interleaved rounds.\n")  # fmt: skip
