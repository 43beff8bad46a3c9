"""The labels that security modules give a container's processes: AppArmor's profiles, SELinux's contexts.

RuntimeDefault means the profile `highrt-default`, which is loaded when a container first wants it: it keeps containers from
mounting, from writing in /proc and /sys, and from tracing and signalling what is outside. On a machine without AppArmor there is
none, as a kubelet expects it.
"""

import asyncio
import shutil
from pathlib import Path
from typing import Any

from highrt.pods.errors import InvalidArgument
from strata.linux import lsm
from strata.protocols.cri_pb2 import LinuxContainerSecurityContext, SecurityProfile, SELinuxOption
from strata.telemetry import logs

log = logs.get("highrt.pods")

_DEFAULT = "highrt-default"
_LOADED = Path("/sys/kernel/security/apparmor/profiles")
_PARSER_PLACES = "/sbin:/usr/sbin:/usr/local/sbin"
_PARSER_SECONDS = 30.0

_PROFILE = f"""
#include <tunables/global>

profile {_DEFAULT} flags=(attach_disconnected,mediate_deleted) {{
  #include <abstractions/base>

  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (send,receive) peer={_DEFAULT},
  ptrace (trace,read,tracedby,readby) peer={_DEFAULT},

  deny mount,
  # in /proc only the processes' own folders can be written, in /sys only cgroups
  deny @{{PROC}}/[^0-9]** wklx,
  deny /sys/{{[^f],f[^s],fs/[^c]}}** wklx,
  deny @{{PROC}}/{{kcore,kmem,mem,sysrq-trigger}} rwklx,
  deny /sys/{{firmware,kernel/security}}/** rwklx,
}}
"""


async def prepare(context: LinuxContainerSecurityContext) -> dict[str, Any]:
    """What of the OCI `process` the labels are: `apparmorProfile`, `selinuxLabel`. Raises InvalidArgument for what cannot be."""
    found = {}
    if profile := await _apparmor(context):
        found["apparmorProfile"] = profile
    if label := _selinux(context.selinux_options):
        found["selinuxLabel"] = label
    return found


def asked_apparmor(context: LinuxContainerSecurityContext) -> SecurityProfile:
    """The profile that is asked for: by `apparmor`, or by the text that was there before it, which is less than it."""
    if context.HasField("apparmor"):
        return context.apparmor
    text = context.apparmor_profile
    if text in ("", "runtime/default"):
        return SecurityProfile(profile_type=SecurityProfile.ProfileType.RuntimeDefault)
    if text == "unconfined":
        return SecurityProfile(profile_type=SecurityProfile.ProfileType.Unconfined)
    if not text.startswith("localhost/"):
        raise InvalidArgument(f"AppArmor profile {text!r}: write runtime/default, unconfined or localhost/NAME")
    return SecurityProfile(profile_type=SecurityProfile.ProfileType.Localhost, localhost_ref=text)


async def _apparmor(context: LinuxContainerSecurityContext) -> str:
    asked = asked_apparmor(context)
    if asked.profile_type == SecurityProfile.ProfileType.Localhost:
        name = asked.localhost_ref.removeprefix("localhost/")
        if not name:
            raise InvalidArgument("AppArmor profile: localhost_ref is empty: name a profile")
        if not lsm.has_apparmor():
            raise InvalidArgument(f"AppArmor profile {name}: AppArmor is not enabled on this machine")
        if not _is_loaded(name):
            raise InvalidArgument(f"AppArmor profile {name}: it is not loaded: load it with apparmor_parser")
        return name
    wanted = asked.profile_type == SecurityProfile.ProfileType.RuntimeDefault and not context.privileged
    return _DEFAULT if wanted and lsm.has_apparmor() and await _load_default() else ""


def _is_loaded(name: str) -> bool:
    try:
        lines = _LOADED.read_text().splitlines()
    except OSError:
        return False
    return any(line.rpartition(" (")[0] == name for line in lines)


async def _load_default() -> bool:
    if _is_loaded(_DEFAULT):
        return True
    parser = shutil.which("apparmor_parser", path=_PARSER_PLACES)
    if parser is None:
        log.warning("there is no apparmor_parser: containers run without an AppArmor profile (Debian's package apparmor)")
        return False
    process = await asyncio.create_subprocess_exec(
        parser, "--replace", "--skip-cache", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_PARSER_SECONDS):
            _, trouble = await process.communicate(_PROFILE.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    if process.returncode:
        raise InvalidArgument(f"AppArmor profile {_DEFAULT} cannot be loaded: {trouble.decode(errors='replace').strip()}")
    return True


def _selinux(options: SELinuxOption) -> str:
    """The label of the processes; what is not given is that of containers in the usual policies."""
    if not any((options.user, options.role, options.type, options.level)) or not lsm.has_selinux():
        return ""
    user, role, kind = options.user or "system_u", options.role or "system_r", options.type or "container_t"
    return ":".join([user, role, kind, options.level or "s0"])
