"""A process's rarer attributes: scheduler, I/O priority, personality, memory policy, AppArmor profile, SELinux label.

Imported only where a configuration has one of them. All is parsed and packed before the process is cloned; `open` runs while it
sees the machine's /proc, and `apply` inside the container, before it says that it is ready.
"""

import errno
import os

from lowrt.errors import RuntimeFailure, reason
from strata.linux import lsm, scheduler, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Spec = dict[str, Any]

_PERSONALITIES = {"LINUX": 0x0000, "LINUX32": 0x0008}  # personality(2)


class Attributes:
    """What one process is to have."""

    def __init__(self, process: "Spec", linux: "Spec") -> None:
        """linux: the configuration's `linux` object, or as much of it as a container's state has kept."""
        self._steps: list[tuple[str, Callable[[], object], str]] = []
        self._labels: list[_Label] = []
        if given := process.get("scheduler"):
            attributes = scheduler_attributes(given)
            denied = ""  # what EPERM means, which nobody would guess
            if given["policy"] in ("SCHED_FIFO", "SCHED_RR"):
                denied = (
                    "error setting scheduler: operation not permitted (in a cgroup of v1, real time needs"
                    " linux.resources.cpu.realtimeRuntime)"
                )
            elif (linux.get("resources") or {}).get("cpu", {}).get("cpus"):
                denied = "process scheduler can't be used together with AllowedCPUs"
            self._steps.append(("error setting scheduler", lambda: scheduler.set_attributes(attributes), denied))
        if given := process.get("ioPriority"):
            class_, level = scheduler.IO_CLASSES[given["class"]], given.get("priority", 0)
            self._steps.append(("failed to set io priority", lambda: scheduler.set_io_priority(class_, level), ""))
        if given := linux.get("personality"):
            persona = _PERSONALITIES[given["domain"]]
            self._steps.append(("failed to set personality", lambda: syscalls.personality(persona), ""))
        if given := linux.get("memoryPolicy"):
            mode, nodes = memory_policy(given)
            self._steps.append(("failed to set memory policy", lambda: scheduler.set_memory_policy(mode, nodes), ""))
        if profile := process.get("apparmorProfile"):
            self._labels.append(_Label("apparmor failed to apply profile", lsm.open_exec_profile, f"exec {profile}"))
        self._key_label = -1
        self._selinux_label: str = process.get("selinuxLabel") or ""
        if label := self._selinux_label:
            self._labels.append(_Label("can't set process label", lsm.open_exec_label, label))

    @property
    def has_labels(self) -> bool:
        return bool(self._labels)

    def open(self, proc: int) -> None:
        """Opens what is written later. proc: a descriptor of the machine's /proc."""
        for label in self._labels:
            label.open(proc)
        if self._selinux_label:
            self._key_label = _do("can't set key label", lambda: lsm.open_key_label(proc))
            # The next key to be made is the container's session keyring.
            _do("can't set key label", lambda: os.write(self._key_label, self._selinux_label.encode()))

    def apply(self) -> None:
        """Sets everything for this process. Raises RuntimeFailure."""
        if self._key_label >= 0:
            os.write(self._key_label, b"")
            os.close(self._key_label)
        for what, step, denied in self._steps:
            _do(what, step, denied)
        for label in self._labels:
            label.write()


class _Label:
    """What a security module is told of the next exec: opened early, written late."""

    def __init__(self, what: str, open_: "Callable[[int], int]", content: str) -> None:
        self._what, self._open, self._content = what, open_, content.encode()
        self._descriptor = -1

    def open(self, proc: int) -> None:
        self._descriptor = _do(self._what, lambda: self._open(proc))

    def write(self) -> None:
        try:
            _do(self._what, lambda: os.write(self._descriptor, self._content))
        finally:
            os.close(self._descriptor)


def _do(what: str, step: "Callable[[], Any]", denied: str = "") -> "Any":
    try:
        return step()
    except OSError as error:
        raise RuntimeFailure(denied if denied and error.errno == errno.EPERM else f"{what}: {reason(error)}") from None


# --- from the specification's words to the kernel's; each raises RuntimeFailure for what makes no sense


def scheduler_attributes(given: "Spec") -> bytes:
    """process.scheduler (config.md, Linux Process)."""
    policy, nice, priority = given.get("policy", ""), given.get("nice", 0), given.get("priority", 0)
    _expect(policy != "", "scheduler policy is required")
    _expect(policy in scheduler.POLICIES, f"invalid scheduler policy: {policy}")
    if policy in ("SCHED_OTHER", "SCHED_BATCH"):
        _expect(-20 <= nice <= 19, f"invalid scheduler.nice: {nice} when scheduler.policy is {policy}")
    real_time = policy in ("SCHED_FIFO", "SCHED_RR")
    _expect(priority == 0 or real_time, "scheduler.priority can only be specified for SchedFIFO or SchedRR policy")
    _expect(0 <= priority <= 99, f"invalid scheduler.priority: {priority}: must be from 1 to 99")
    times = [given.get(name, 0) for name in ("runtime", "deadline", "period")]
    _expect(
        policy == "SCHED_DEADLINE" or not any(times),
        "scheduler runtime/deadline/period can only be specified for SchedDeadline policy",
    )
    flags = 0
    for name in given.get("flags") or ():
        _expect(name in scheduler.FLAGS, f"invalid scheduler flag: {name}")
        flags |= scheduler.FLAGS[name]
    return scheduler.pack_attributes(scheduler.POLICIES[policy], flags, nice, priority, *times)


def memory_policy(given: "Spec") -> tuple[int, bytes]:
    """linux.memoryPolicy (config-linux.md): the mode with its flags, and the mask of nodes."""
    name = given.get("mode", "")
    _expect(name in scheduler.MEMORY_MODES, f"invalid memory policy mode {name!r}")
    try:
        nodes = scheduler.parse_list(given.get("nodes", ""))
    except ValueError as error:
        raise RuntimeFailure(f"invalid memory policy nodes {given['nodes']!r}: {error}") from None
    mode = scheduler.MEMORY_MODES[name]
    for flag in given.get("flags") or ():
        _expect(flag in scheduler.MEMORY_FLAGS, f"invalid memory policy flag {flag!r}")
        mode |= scheduler.MEMORY_FLAGS[flag]
    count = int.from_bytes(nodes, "little").bit_count()
    if name in ("MPOL_DEFAULT", "MPOL_LOCAL"):
        _expect(count == 0, f"memory policy mode requires 0 nodes but got {count}")
    elif name != "MPOL_PREFERRED":
        _expect(count > 0, "memory policy mode requires at least one node but got 0")
    return mode, nodes


def affinity(given: "Spec") -> tuple[bytes, bytes]:
    """process.execCPUAffinity (config.md, Linux Process): the masks to begin with and to end with; empty for none."""
    masks = []
    for name in ("initial", "final"):
        try:
            masks.append(scheduler.parse_list(given.get(name, "")))
        except ValueError as error:
            raise RuntimeFailure(f"bad CPUAffinity.{name.title()}: {error}") from None
    return masks[0], masks[1]


def check(process: "Spec", linux: "Spec") -> None:
    """Raises RuntimeFailure for attributes that cannot be given."""
    if "scheduler" in process:
        scheduler_attributes(process["scheduler"])
    if "ioPriority" in process:
        priority = process["ioPriority"]
        _expect(0 <= priority.get("priority", 0) <= 7, f"invalid ioPriority.Priority: {priority.get('priority')}")
        _expect(priority.get("class") in scheduler.IO_CLASSES, f'invalid ioPriority.Class: "{priority.get("class", "")}"')
    affinity(process.get("execCPUAffinity") or {})
    if process.get("selinuxLabel"):
        _expect(lsm.has_selinux(), "selinux label is specified in config, but selinux is disabled or not supported")
    if process.get("apparmorProfile"):
        _expect(lsm.has_apparmor(), "apparmor: config provided but apparmor not supported")
    if "personality" in linux:
        domain = linux["personality"].get("domain", "")
        _expect(domain in _PERSONALITIES, f"invalid personality domain {domain}")
        _expect(not linux["personality"].get("flags"), "linux.personality.flags: there are none that could be set")
    if "memoryPolicy" in linux:
        memory_policy(linux["memoryPolicy"])
    if linux.get("mountLabel"):
        _expect(lsm.has_selinux(), "linux.mountLabel: selinux is disabled or not supported")


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise RuntimeFailure(message)
