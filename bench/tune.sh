#!/usr/bin/env bash
# Measures what boot tuning is worth, in network namespaces of its own; needs root. `bench/tune.sh --help` lists the modes.
exec python3 "$(dirname "$0")/tune.py" "$@"
