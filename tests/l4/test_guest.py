"""The oldest kernel that is promised: Debian's 6.1, in a machine that qemu emulates."""

import os
from pathlib import Path

from harness.guest import Guest, Initrd, Kernel
from harness.proxy import ROOT, binary

HERE = Path(__file__).parent
PROGRAMS = ("ip", "ss", "sysctl", "curl")
MODULES = ("veth", "bridge", "nf_tables")
# Seconds. Emulated, all takes ten times as long and more, and there may be other work beside it.
PATIENCE = 250


def test_linux_6_1(tmp_path):
    kernel, initrd = Kernel(ROOT / "target/guest"), Initrd()
    for name in PROGRAMS:
        initrd.program(name)
    initrd.program(binary(), "/usr/bin/ringgate")
    if unit := os.environ.get("RINGGATE_UNIT_TESTS"):
        initrd.program(unit, "/unit")
    initrd.directory(HERE.parent / "harness", "/tests/harness")
    initrd.directory(HERE, "/tests/l4")
    initrd.file("/job/main.py", (HERE / "guest_smoke.py").read_bytes())
    initrd.file("/job/environment", "RINGGATE_BIN /usr/bin/ringgate\n")
    text = Guest(tmp_path, kernel, initrd, MODULES).run(PATIENCE)
    print(text)
    did = [line.split(" ", 1)[1] for line in text.splitlines()]
    assert did[0].startswith("6.1."), text
    for step in ("demo", "plan", "vrrp", "packet", "generic without limits", "native with limits", "generic with limits", "gone"):
        assert step in did, f"{step}:\n{text}"
