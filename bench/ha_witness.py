"""`ha_witness.py CPU SECONDS`: says from when to when (CLOCK_MONOTONIC) this CPU was away, as seen by a thread of the
highest real-time priority that nothing on this machine can hold up: then the machine's own host had taken it."""

import ctypes
import gc
import os
import sys
import time

NOTED = 0.004  # seconds, of which one is the pause


def main(cpu, seconds):
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
    ctypes.CDLL(None).mlockall(3)
    gc.disable()
    print("watching", flush=True)
    last = time.monotonic()
    end = last + seconds
    while last < end:
        time.sleep(0.001)
        now = time.monotonic()
        if now - last > NOTED:
            print(last, now, flush=True)
        last = now


main(int(sys.argv[1]), float(sys.argv[2]))
