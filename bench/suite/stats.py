"""Medians, spread and paired ratios."""

import statistics

# Distances of CPUs within this factor are the same state of the machine: as noise has it, not as another cache would.
ALIKE = 3.0


def spread(values):
    """Median with quartiles and extremes; None of nothing."""
    values = sorted(value for value in values if value is not None)
    if not values:
        return None
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"n": len(values), "median": statistics.median(values), "q1": quartiles[0], "q3": quartiles[2],
            "min": values[0], "max": values[-1]}


def median_interval(values):
    """An interval that holds the median of what the values are drawn from with 95 % probability or more.

    From order statistics, so without assumption on the distribution; the extremes if there are too few values.
    """
    values, n = sorted(values), len(values)
    tail, term, rank = 0.0, 0.5 ** n, 0
    while rank < n // 2 and tail + term <= 0.025:
        tail += term
        term *= (n - rank) / (rank + 1)
        rank += 1
    return values[max(rank - 1, 0)], values[n - max(rank, 1)]


def alike(one, other):
    """Whether two distances of CPUs are those of one state of the machine; of one not known there is nothing to say."""
    return not one or not other or max(one, other) <= ALIKE * min(one, other)


def paired(slices, label, peer, figure):
    """Ratios of a figure to a peer's, round by round: of rounds with both at like distances, if there are any."""
    others = {one["round"]: one for one in slices if one["contender"] == peer}
    pairs = [(one, others[one["round"]]) for one in slices
             if one["contender"] == label and others.get(one["round"], {}).get(figure)]
    like = [(one, other) for one, other in pairs if alike(one.get("cpus_apart_ns"), other.get("cpus_apart_ns"))]
    return [one[figure] / other[figure] for one, other in like or pairs]


def ratio(slices, label, peer, figure):
    """Spread of the paired ratios with the interval of their median; None when there is no pair."""
    ratios = paired(slices, label, peer, figure)
    if not ratios:
        return None
    low, high = median_interval(ratios)
    return spread(ratios) | {"low": low, "high": high}
