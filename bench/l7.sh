#!/usr/bin/env bash
# Measures the layer-7 proxy next to nginx and HAProxy; `bench/l7.sh --help` lists the modes and options.
exec python3 "$(dirname "$0")/l7.py" "$@"
