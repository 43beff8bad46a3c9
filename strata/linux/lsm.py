"""Labels of the security modules: AppArmor's profiles and SELinux's contexts, for what this process executes.

Both are files of the process itself in /proc/self/attr (proc_pid_attr(5)), which a container's own /proc could pretend to have:
so they are opened through the machine's, and written later.
"""

import os

_APPARMOR, _SELINUX = "/sys/kernel/security/apparmor", "/sys/fs/selinux"
_APPARMOR_ENABLED = "/sys/module/apparmor/parameters/enabled"


def has_apparmor() -> bool:
    """Whether the kernel runs AppArmor."""
    try:
        with open(_APPARMOR_ENABLED, encoding="ascii") as file:
            return file.read().startswith("Y")
    except OSError:
        return os.path.isdir(_APPARMOR)


def has_selinux() -> bool:
    """Whether the kernel runs SELinux, with its file system mounted."""
    return os.path.isdir(_SELINUX)


def open_exec_profile(proc: int) -> int:
    """The file that takes AppArmor's profile of the next exec. proc: a descriptor of the machine's /proc."""
    try:
        return os.open("self/attr/apparmor/exec", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
    except FileNotFoundError:  # before Linux 5.1 there was one file for all modules
        return os.open("self/attr/exec", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)


def open_exec_label(proc: int) -> int:
    """The file that takes SELinux's label of the next exec."""
    return os.open("self/attr/exec", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)


def open_key_label(proc: int) -> int:
    """The file that takes SELinux's label of keys that this process makes; nothing written to it means the usual one again."""
    return os.open("self/attr/keycreate", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)


def mount_option(label: str) -> str:
    """The option that gives a new file system's files one SELinux label (mount(8), context)."""
    return f'context="{label}"'
