"""The benchmark harness behind `bench/run`: scenarios x contenders, measured, compared and reported.

    cli         the command line
    scenarios   what is measured
    bed         where: CPUs, and the network between the contender and the others
    distance    how far the CPUs are apart meanwhile
    contenders  who is measured: configuration, start, the check that all do the same work
    measure     one slice; probe: system calls; memory: idle connections
    compare     --base: two revisions of our own; pure: instruction counts under callgrind
    stats       medians, spread, paired ratios
    report      the Markdown page; charts: its SVGs; sizing: from figures to hardware
"""


class BenchError(Exception):
    """The measurement cannot be made, or what it measured is not valid."""
