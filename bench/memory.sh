#!/usr/bin/env bash
# Memory an idle keep-alive client connection costs; `bench/memory.sh --help` lists the options.
exec python3 "$(dirname "$0")/memory.py" "$@"
