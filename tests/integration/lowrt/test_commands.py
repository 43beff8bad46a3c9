"""The command line as runc's callers know it: flags, texts, exit statuses, and the order of a container's steps."""

from typing import Any

_ENOUGH_FOR_TRUE = (
    "access arch_prctl brk chdir close execve exit exit_group fchdir fcntl fstat fstat64 getcwd getegid geteuid getgid getuid "
    "ioctl lseek lstat mmap mprotect munmap newfstatat open openat prctl pread64 prlimit64 read readlink rseq rt_sigaction "
    "rt_sigprocmask rt_sigreturn sendto set_robust_list set_tid_address setgid setgroups setresgid setresuid setuid stat uname "
    "capget capset write"
)


def test_a_seccomp_profile_older_than_the_runtimes_system_calls_lets_the_container_start(runtime: Any) -> None:
    """Without no_new_privs the filter is loaded early: what comes after it must be old, as the profiles are."""
    runtime.config["process"]["noNewPrivileges"] = False
    names = _ENOUGH_FOR_TRUE.split()
    runtime.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
    }
    done = runtime.run("true")
    assert (done.returncode, done.stderr) == (0, "")
