"""What a test run may leave behind on a machine, as a set of lines: mounts, network namespaces, cgroups, interfaces,
nft tables, and processes that carry the mark of this run (STRATA_TEST_RUN in their environment).

`python -m tests.machine` prints it; `tests/test_machine_is_clean.py` compares before and after.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


def snapshot() -> set[str]:
    return {*_mounts(), *_network_namespaces(), *_cgroups(), *_interfaces(), *_nft_tables(), *_marked_processes()}


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] != "/run/netns":  # iproute2 makes it when it is first used, by any test, and never takes it away
            yield f"mount {fields[4]} ({fields[fields.index('-') + 1]})"


def _network_namespaces() -> Iterator[str]:
    folder = Path("/run/netns")
    yield from (f"network namespace {p.name}" for p in (folder.iterdir() if folder.exists() else ()))


def _cgroups() -> Iterator[str]:
    """Every cgroup, except those beside the run's own: whoever started the run there starts and ends others too."""
    own = {line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()} - {"/"}
    parents = tuple({os.path.dirname(path) for path in own} - {"/"})
    names = {os.path.basename(path) for path in own}
    for folder, children, _ in os.walk("/sys/fs/cgroup"):
        if folder.endswith(parents):
            children[:] = names.intersection(children)
        yield f"cgroup {folder}"


def _interfaces() -> Iterator[str]:
    yield from (f"interface {name}" for name in os.listdir("/sys/class/net"))


def _nft_tables() -> Iterator[str]:
    listing = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    yield from (f"nft {line.strip()}" for line in listing.splitlines())


def _marked_processes() -> Iterator[str]:
    mark = os.environ.get("STRATA_TEST_RUN")
    if not mark:
        return
    own = _ancestors()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in own:
            continue
        try:
            environ, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile, or it is a zombie
            continue
        if f"STRATA_TEST_RUN={mark}".encode() in environ.split(b"\0"):
            yield f"process {entry.name} {command.replace(bytes(1), b' ').decode(errors='replace').strip()}"


def _ancestors() -> set[int]:
    found, pid = set(), os.getpid()
    while pid > 1:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


if __name__ == "__main__":
    print("\n".join(sorted(snapshot())))
