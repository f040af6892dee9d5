"""A machine of its own with the oldest kernel that is promised: Debian's 6.1, emulated by qemu (TCG, no KVM needed).

The kernel comes from Debian's package, unpacked and not installed. What runs in the guest is copied from this machine
into an initial RAM disk: programs with their libraries, Python, and a script, which prints lines to standard output.
"""

import re
import subprocess
import tempfile
import time
from pathlib import Path

from .client import tool

KERNEL = "linux-image-cloud-amd64"
INIT = Path(__file__).with_name("guest_init.py")
LINE = re.compile(rb"\0depends=([^\0]*)\0")
BEGUN, ENDED = "the script begins\n", "the script ended well\n"
# A boot takes 3 seconds on a machine that does nothing else.
BOOTS, BOOT_SECONDS = 3, 90
# What Python's library has that no script of ours needs.
UNUSED = {"config-3.11-x86_64-linux-gnu", "lib2to3", "pydoc_data", "distutils", "idlelib", "ensurepip", "test", "tkinter"}


class Kernel:
    """Debian's kernel of this release, unpacked below `directory`, where it stays for the next time."""

    def __init__(self, directory):
        root = Path(directory) / "kernel"
        if not list(root.glob("boot/vmlinuz-*")):
            fetch(root)
        self.image = next(root.glob("boot/vmlinuz-*"))
        self.release = self.image.name.removeprefix("vmlinuz-")
        self.modules = {path.stem.replace("-", "_"): path for path in root.glob("lib/modules/*/kernel/**/*.ko")}

    def with_needed(self, names):
        """Modules by name, each after those it needs; a name without a file is built in."""
        order = {}

        def add(name):
            path = self.modules.get(name.replace("-", "_"))
            if path is None or name in order:
                return
            needed = LINE.search(path.read_bytes())
            for one in needed[1].decode().split(",") if needed else ():
                add(one)
            order[name] = path

        for name in names:
            add(name)
        return list(order.values())


def fetch(root):
    """Downloads the kernel's package by name and unpacks it, which touches nothing that this machine boots."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            package = download(scratch)
        except AssertionError:  # no lists of packages yet, or old ones
            run("apt-get", "update", timeout=300)
            package = download(scratch)
        partial = root.with_name(f"{root.name}.part")
        partial.mkdir(parents=True, exist_ok=True)
        run("dpkg", "-x", package, partial, timeout=120)
    partial.rename(root)


def download(scratch):
    depends = run("apt-cache", "depends", KERNEL)
    name = re.search(r"Depends: (linux-image-6\.1\.\S+)", depends)
    assert name, f"no kernel 6.1 in {depends!r}"
    run("apt-get", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download", name[1], cwd=scratch, timeout=300)
    return next(Path(scratch).glob("*.deb"))


def run(*argv, timeout=60, **options):
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=timeout, **options)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


class Initrd:
    """A cpio archive (newc; Documentation/driver-api/early-userspace/buffer-format.rst) put together in memory."""

    def __init__(self):
        self.files = {}
        for name in ("proc", "sys", "dev", "tmp", "run", "var/run", "root"):
            self.files[name] = (0o40755, b"")
        self.directory(f"/usr/lib/{python()}")
        self.program("/usr/bin/python3")
        for module in Path(f"/usr/lib/{python()}/lib-dynload").iterdir():
            self.libraries(module)
        self.file("/init", INIT.read_bytes(), 0o100755)

    def file(self, where, content, mode=0o100644):
        for parent in reversed(Path(where).parents[:-1]):
            self.files.setdefault(str(parent).lstrip("/"), (0o40755, b""))
        self.files[str(where).lstrip("/")] = (mode, content)

    def directory(self, source, where=None):
        """A directory with what is below it."""
        for path in Path(source).rglob("*"):
            inner = path.relative_to(source)
            if path.is_file() and not UNUSED & set(inner.parts):
                self.file(Path(where or source) / inner, path.read_bytes())

    def program(self, name, where=None):
        """A program with its libraries, without its symbols, which nobody in the guest reads."""
        path = Path(tool(name) if "/" not in str(name) else name).resolve()
        with tempfile.NamedTemporaryFile() as stripped:
            shrunk = subprocess.run(["strip", "-o", stripped.name, path], capture_output=True, check=False)
            content = Path(stripped.name).read_bytes() if shrunk.returncode == 0 else path.read_bytes()
        where = where or (name if "/" in str(name) else f"/usr/bin/{name}")
        self.file(where, content, 0o100755)
        self.libraries(path)
        return where

    def libraries(self, path):
        for library in re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", path], capture_output=True, text=True).stdout):
            self.file(library, Path(library).resolve().read_bytes(), 0o100755)

    def write(self, path):
        with open(path, "wb") as out:
            for number, (name, (mode, content)) in enumerate([*self.files.items(), ("TRAILER!!!", (0, b""))], 1):
                data = content.encode() if isinstance(content, str) else content
                fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
                head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
                for part in (head, data):
                    out.write(part + bytes(-len(part) % 4))


def python():
    return Path("/usr/bin/python3").resolve().name


class Guest:
    """Boots the kernel, loads modules, runs a Python script; its output and the kernel's messages are kept apart."""

    def __init__(self, directory, kernel, initrd, modules=(), memory_mib=1536, count_instructions=False):
        self.console, self.output = Path(directory) / "console", Path(directory) / "output"
        order = kernel.with_needed(modules)
        for path in order:
            initrd.file(f"/modules/{path.name}", path.read_bytes())
        initrd.file("/modules/order", "\n".join(path.name for path in order))
        initrd.write(Path(directory) / "initrd")
        self.argv = [
            tool("qemu-system-x86_64"), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", "pc",
            "-accel", "tcg", "-cpu", "max", "-smp", 1, "-m", memory_mib,
            "-kernel", kernel.image, "-initrd", Path(directory) / "initrd",
            "-append", "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off clearcpuid=rep_good,erms,fsrm net.ifnames=0 random.trust_cpu=on",
            "-serial", f"file:{self.console}", "-serial", f"file:{self.output}",
        ]  # fmt: skip
        if count_instructions:
            # A nanosecond of the guest's clock is an instruction; idle time passes without waiting.
            self.argv += ["-icount", "shift=0,sleep=off"]

    def run(self, timeout):
        """What the script printed; an AssertionError with the console's end when it failed or took too long."""
        for attempt in range(BOOTS):
            self.output.write_bytes(b"")
            process = subprocess.Popen([str(a) for a in self.argv], stdin=subprocess.DEVNULL)
            try:
                if self.booted(process) or attempt == BOOTS - 1:
                    process.wait(timeout)
                    break
            except subprocess.TimeoutExpired:
                raise AssertionError(f"the guest took more than {timeout} s:\n{self.said()}") from None
            finally:
                process.kill()
                process.wait()
        text = self.output.read_text(errors="replace").replace("\r\n", "\n")
        assert text.endswith(ENDED), f"the guest failed:\n{self.said()}"
        return text.removeprefix(BEGUN).removesuffix(ENDED)

    def booted(self, process):
        """Whether the script has begun: emulated machines have been seen to stand still before, which is no fault of ours."""
        end = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < end:
            if process.poll() is not None or self.output.stat().st_size > 0:
                return True
            time.sleep(0.1)
        return False

    def said(self):
        return "\n".join(path.read_text(errors="replace")[-6000:] for path in (self.output, self.console) if path.exists())
