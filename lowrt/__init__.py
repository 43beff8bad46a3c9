"""lowrt, an OCI runtime with runc's command line: it makes containers out of bundles, and then gets out of the way.

`main.run` is the one entry, for the command (`boot`, `__main__`) and for whoever calls it in process (highrt's monitor;
its interpreter must run from a read-only view of its file, as the launcher makes it). A container comes to be in `create` (the
parent's side: state, cgroup, hooks) and `init` (the child's side, which becomes the container's first process); `rootfs` is
what the child does to the file system, `process` the last steps before exec, shared with `execute`. May import `strata.linux`,
and `strata.telemetry` when spans are on; nothing imports it.

The cold start is paid at every command: modules on the path of `run` import neither re, json, typing nor dataclasses.
"""
