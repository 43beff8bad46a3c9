"""What lowrt's commands do, seen from outside: a container's whole life, and the ways in which it fails."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from strata.linux import cgroups
from tests.conftest import wait_for

LOWRT = Path(__file__).parents[3] / "lowrt" / "launcher"


def test_run_gives_output_and_exit_status(runtime: Any) -> None:
    done = runtime.run("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert runtime.call("list", "-q").stdout == ""
    assert not cgroups.open_cgroup(runtime.cgroup).exists()


def test_a_container_without_a_cgroup_path_leaves_no_groups(runtime: Any) -> None:
    """Also where the caller's own group is in one hierarchy only, as a service manager may have put it."""
    caller = cgroups.open_cgroup(f"/strata-test-of-{runtime.id}")
    folder = next((f for f in caller.folders() if "/memory/" in f), caller.folders()[0])
    os.mkdir(folder)
    try:
        del runtime.config["linux"]["cgroupsPath"]
        runtime.config["process"]["args"] = ["true"]
        runtime.write()
        line = f'echo $$ > {folder}/cgroup.procs; exec "$@"'
        command = [LOWRT, "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id]
        done = subprocess.run(["sh", "-ec", line, "sh", *command], capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert [f for f in caller.folders() if os.path.isdir(f)] == [folder]
        assert not any(inside.is_dir() for inside in Path(folder).iterdir())
    finally:
        caller.remove()


def test_a_signal_is_reported_as_128_and_its_number(runtime: Any) -> None:
    assert runtime.run("sh", "-c", "kill -9 $$").returncode in (0, 137)  # a PID 1 ignores signals of its own namespace
    pid = runtime.start("sleep", "100")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: runtime.state()["status"] == "stopped", what="the container to stop")


def test_the_life_of_a_container(runtime: Any) -> None:
    runtime.config["process"]["args"] = ["sleep", "100"]
    runtime.config["annotations"] = {"org.example": "yes"}
    runtime.write()
    pid_file = runtime.root.parent / "pid"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False}
    runtime.call("create", "--bundle", runtime.bundle, "--pid-file", pid_file, runtime.id, check=True, **quiet)
    state = runtime.state()
    assert state["status"] == "created"
    assert state["pid"] == int(pid_file.read_text())
    assert state["bundle"] == str(runtime.bundle)
    assert state["annotations"] == {"org.example": "yes"}
    assert Path(f"/proc/{state['pid']}/comm").read_text() != "sleep\n"
    runtime.call("start", runtime.id, check=True)
    assert runtime.state()["status"] == "running"
    assert Path(f"/proc/{state['pid']}/comm").read_text() == "sleep\n"
    again = runtime.call("start", runtime.id)
    assert again.returncode == 1
    assert "cannot start an already running container" in again.stderr
    refused = runtime.call("delete", runtime.id)
    assert refused.returncode == 1
    assert "not stopped: running" in refused.stderr
    listed = json.loads(runtime.call("list", "--format", "json").stdout)
    assert [one["id"] for one in listed] == [runtime.id]
    assert json.loads(runtime.call("ps", "--format", "json", runtime.id).stdout) == [state["pid"]]
    runtime.call("kill", runtime.id, "KILL", check=True)
    wait_for(lambda: runtime.state()["status"] == "stopped", what="the container to stop")
    assert runtime.state()["pid"] == 0
    assert "not running" in runtime.call("kill", runtime.id).stderr
    runtime.call("delete", runtime.id, check=True)
    assert "does not exist" in runtime.call("state", runtime.id).stderr
    assert runtime.call("delete", runtime.id).returncode == 1
    assert runtime.call("delete", "--force", runtime.id).returncode == 0


def test_ids_are_unique_and_plain(runtime: Any) -> None:
    runtime.start("sleep", "100")
    assert "already exists" in runtime.call("run", "--bundle", runtime.bundle, runtime.id).stderr
    assert "invalid container ID" in runtime.call("run", "--bundle", runtime.bundle, "../evil").stderr
    assert runtime.state()["status"] == "running"


def test_pause_and_resume(runtime: Any) -> None:
    runtime.start("sleep", "100")
    runtime.call("pause", runtime.id, check=True)
    assert runtime.state()["status"] == "paused"
    assert "paused" in runtime.call("exec", runtime.id, "true").stderr
    runtime.call("resume", runtime.id, check=True)
    assert runtime.call("exec", runtime.id, "true").returncode == 0


def test_exec(runtime: Any) -> None:
    runtime.start("sleep", "100")
    done = runtime.call("exec", "--env", "A=b", "--cwd", "/tmp", "--user", "1000:1000", runtime.id,
                        "sh", "-c", "echo $A $PWD $HOME; id -u; exit 5")  # fmt: skip
    assert done.stdout.split() == ["b", "/tmp", "/home/ada", "1000"]
    assert done.returncode == 5
    missing = runtime.call("exec", runtime.id, "nosuch")
    assert missing.returncode == 255
    assert 'exec: "nosuch": executable file not found in $PATH' in missing.stderr
    assert "no such file or directory" in runtime.call("exec", runtime.id, "/bin/nosuch").stderr


def test_exec_joins_the_cgroup(runtime: Any, tmp_path: Path) -> None:
    runtime.start("sleep", "100")
    pid_file = tmp_path / "exec.pid"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False}
    runtime.call("exec", "--detach", "--pid-file", pid_file, runtime.id, "sleep", "200", check=True, **quiet)
    assert int(pid_file.read_text()) in cgroups.open_cgroup(runtime.cgroup).pids()


def test_nothing_of_the_callers_is_open_in_the_container(runtime: Any) -> None:
    assert runtime.shell("ls /proc/self/fd").split() == ["0", "1", "2", "3"]  # 3 is what ls reads the folder with
    runtime.start("sleep", "100")
    assert runtime.call("exec", runtime.id, "ls", "/proc/self/fd").stdout.split() == ["0", "1", "2", "3"]


def test_namespaces_are_new(runtime: Any) -> None:
    kinds = [entry["type"] for entry in runtime.config["linux"]["namespaces"]]
    if "cgroup" not in kinds:
        runtime.config["linux"]["namespaces"].append({"type": "cgroup"})
    pid = runtime.start("sleep", "100")
    for kind in ("pid", "mnt", "net", "ipc", "uts", "cgroup"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    assert runtime.call("exec", runtime.id, "hostname").stdout == "lowrt\n"
    assert "UP" in runtime.call("exec", runtime.id, "ip", "link", "show", "lo").stdout


def test_namespaces_are_joined_by_path(make_runtime: Any) -> None:
    first, second = make_runtime("first"), make_runtime("second")
    pid = first.start("sleep", "100")
    for entry in second.config["linux"]["namespaces"]:
        names = {"pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts"}
        if entry["type"] in names:
            entry["path"] = f"/proc/{pid}/ns/{names[entry['type']]}"
    second.config.pop("hostname")
    other = second.start("sleep", "200")
    for name in ("pid", "net", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/{other}/ns/{name}"), name
    assert os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink(f"/proc/{other}/ns/mnt")
    assert "sleep 100" in second.call("exec", second.id, "ps").stdout


def test_user_namespace(runtime: Any) -> None:
    linux = runtime.config["linux"]
    linux["namespaces"].append({"type": "user"})
    for name in ("uidMappings", "gidMappings"):
        linux[name] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    # Its root must be reachable and its own, and pytest's folders are for root only.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        shutil.move(runtime.bundle / "rootfs", f"{folder}/rootfs")
        os.chown(f"{folder}/rootfs", 100000, 100000)
        runtime.config["root"]["path"] = f"{folder}/rootfs"
        pid = runtime.start("sleep", "100")
        assert os.stat(f"/proc/{pid}").st_uid == 100000
        assert runtime.call("exec", runtime.id, "id", "-u").stdout == "0\n"
        runtime.clean()


def test_mounts(runtime: Any, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_text("inside")
    (tmp_path / "single").write_text("one file")
    runtime.config["mounts"] += [
        {"destination": "/data/deep", "type": "bind", "source": str(volume), "options": ["rbind", "ro"]},
        {"destination": "/etc/single", "source": str(tmp_path / "single"), "options": ["bind", "rw"]},
        {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=1m", "mode=700"]},
    ]
    printed = runtime.shell(
        "cat /data/deep/file /etc/single; mount | grep -E 'scratch|deep'; ! touch /data/deep/x; ls -ld /scratch"
    )
    assert printed.startswith("insideone file")
    assert "tmpfs on /scratch type tmpfs (rw,nosuid" in printed
    assert "size=1024k" in printed
    assert "drwx------" in printed
    assert not (volume / "x").exists()


def test_a_symlink_in_the_image_does_not_lead_a_mount_out_of_the_root(runtime: Any, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (runtime.bundle / "rootfs/escape").symlink_to(outside)
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/mark").write_text("")
    source = str(tmp_path / "volume")
    runtime.config["mounts"].append({"destination": "/escape/here", "type": "bind", "source": source, "options": ["bind"]})
    done = runtime.run("sh", "-c", f"ls {outside}/here")
    assert done.returncode == 0 or "error mounting" in done.stderr
    assert list(outside.iterdir()) == []


def test_mounts_inside_proc_are_refused(runtime: Any) -> None:
    runtime.config["mounts"].append({"destination": "/proc/sys", "type": "tmpfs", "source": "tmpfs"})
    assert "inside /proc" in runtime.run("true").stderr


def test_masked_and_readonly_paths(runtime: Any) -> None:
    runtime.config["linux"]["maskedPaths"] = ["/proc/keys", "/sys/firmware", "/nosuch"]
    printed = runtime.shell("cat /proc/keys; ls /sys/firmware; ! sysctl -w kernel.hostname=x")
    assert printed == ""


def test_a_readonly_root(runtime: Any) -> None:
    runtime.config["root"]["readonly"] = True
    assert "Read-only" in runtime.run("touch", "/x").stderr
    assert runtime.run("touch", "/dev/shm/x").returncode == 0


def test_devices(runtime: Any) -> None:
    runtime.config["linux"]["devices"] = [
        {"path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 1000, "gid": 1000}
    ]
    printed = runtime.shell("ls -ln /dev/own; head -c 2 /dev/zero | wc -c 2>/dev/null; echo x >/dev/null; readlink /dev/ptmx")
    assert "crw-r-----    1 1000     1000        1,   5" in printed
    assert printed.endswith("pts/ptmx\n")
    # What no rule allows cannot be opened, even when the node is there.
    runtime.config["process"]["capabilities"]["bounding"] = ["CAP_MKNOD"]
    runtime.config["process"]["capabilities"]["effective"] = ["CAP_MKNOD"]
    runtime.config["process"]["capabilities"]["permitted"] = ["CAP_MKNOD"]
    denied = runtime.run("sh", "-c", "mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg")
    assert "Operation not permitted" in denied.stderr


def test_process_settings(runtime: Any) -> None:
    process = runtime.config["process"]
    process["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [5, 6], "umask": 0o077}
    process["cwd"] = "/made/for/it"
    process["env"] = ["PATH=/bin", "X=a=b"]
    process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    process["oomScoreAdj"] = 500
    printed = runtime.shell("id; pwd; echo $X $HOME; ulimit -n; cat /proc/self/oom_score_adj; umask; cat /proc/self/status")
    assert "uid=1000(ada) gid=1000 groups=5,6" in printed
    assert "/made/for/it\na=b /home/ada\n100\n500\n0077\n" in printed
    assert "NoNewPrivs:\t1" in printed


def test_capabilities(runtime: Any) -> None:
    sets = runtime.config["process"]["capabilities"]
    for kind in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        sets[kind] = ["CAP_CHOWN", "CAP_KILL", "CAP_NOSUCH"]
    runtime.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    status = runtime.shell("cat /proc/self/status")
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert f"{name}:\t0000000000000021" in status


def test_sysctls_of_its_own_namespaces_only(runtime: Any) -> None:
    runtime.config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}
    assert runtime.shell("sysctl -n net.ipv4.ip_forward kernel.shm_rmid_forced").split() == ["1", "1"]
    runtime.config["linux"]["sysctl"] = {"kernel.panic": "1"}
    assert "not in a separate kernel namespace" in runtime.run("true").stderr


def test_hooks(runtime: Any, tmp_path: Path) -> None:
    def hook(name: str, script: str = "") -> dict[str, Any]:
        return {"path": "/bin/sh", "args": ["sh", "-c", f"{script} echo {name} >>{tmp_path}/order; cat >{tmp_path}/{name}"]}

    inside = {"path": "/bin/sh", "args": ["sh", "-c", "echo startContainer >/inside"], "env": ["PATH=/bin"]}
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    runtime.config["hooks"] = {**{kind: [hook(kind)] for kind in kinds}, "startContainer": [inside]}
    assert runtime.shell("cat /inside") == "startContainer\n"
    assert (tmp_path / "order").read_text().split() == list(kinds)
    assert json.loads((tmp_path / "createRuntime").read_text())["id"] == runtime.id
    assert json.loads((tmp_path / "poststop").read_text())["status"] == "stopped"


def test_a_failing_hook_fails_create_and_leaves_nothing(runtime: Any) -> None:
    failing = {"path": "/bin/sh", "args": ["sh", "-c", "echo broken >&2; exit 3"]}
    runtime.config["hooks"] = {"createRuntime": [failing]}
    done = runtime.run("true")
    assert "createRuntime hook #0: exit status 3, output: broken" in done.stderr
    assert runtime.call("list", "-q").stdout == ""
    assert not cgroups.open_cgroup(runtime.cgroup).exists()


def test_a_hook_that_takes_too_long(runtime: Any) -> None:
    runtime.config["hooks"] = {"prestart": [{"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1}]}
    started = time.monotonic()
    assert "ran past its timeout of 1 s" in runtime.run("true").stderr
    assert time.monotonic() - started < 10


def test_limits(runtime: Any) -> None:
    resources = {
        "memory": {"limit": 64 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"},
        "pids": {"limit": 50},
    }
    runtime.config["linux"]["resources"].update(resources)
    runtime.start("sleep", "100")
    folders = {Path(f).relative_to("/sys/fs/cgroup").parts[0]: Path(f) for f in cgroups.open_cgroup(runtime.cgroup).folders()}

    def limit(v1: str, v2: str) -> str:
        """What one of the group's files says, under either version's name."""
        if cgroups.mode() == "v2":
            return Path(f"/sys/fs/cgroup{runtime.cgroup}/{v2}").read_text().strip()
        return (folders[v1.partition(".")[0]] / v1).read_text().strip()

    assert limit("memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert limit("memory.soft_limit_in_bytes", "memory.low") == str(32 << 20)
    assert limit("cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    assert limit("cpuset.cpus", "cpuset.cpus") == "0"
    assert limit("pids.max", "pids.max") == "50"
    if cgroups.mode() != "v2":  # v2 has weights, which are converted in ways of their own
        assert limit("cpu.shares", "") == "512"
    runtime.call("update", "--memory", "32m", "--pids-limit", "20", runtime.id, check=True)
    assert limit("memory.limit_in_bytes", "memory.max") == str(32 << 20)
    assert limit("pids.max", "pids.max") == "20"


def test_memory_over_the_limit_is_killed(runtime: Any) -> None:
    runtime.config["linux"]["resources"]["memory"] = {"limit": 16 << 20}
    done = runtime.run("sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1")
    assert done.returncode == 137


def test_seccomp(runtime: Any) -> None:
    runtime.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {"names": ["nosuchcall"], "action": "SCMP_ACT_ERRNO"},
        ],
    }
    for no_new_privileges in (True, False):
        runtime.config["process"]["noNewPrivileges"] = no_new_privileges
        done = runtime.run("mkdir", "/x")
        assert "No space left" in done.stderr
    runtime.start("sleep", "100")
    assert "No space left" in runtime.call("exec", runtime.id, "mkdir", "/x").stderr


def test_a_program_that_is_not_there(runtime: Any) -> None:
    done = runtime.run("nosuch")
    assert (
        'unable to start container process: error during container init: exec: "nosuch": executable file not found in $PATH'
        in done.stderr
    )
    assert done.returncode == 1
    (runtime.bundle / "rootfs/plain").write_text("no program")
    assert "permission denied" in runtime.run("/plain").stderr
    assert runtime.call("list", "-q").stdout == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(ociVersion="2.0.0"), "ociVersion"),
        (lambda c: c.pop("root"), "root must be specified"),
        (lambda c: c["root"].update(path="nosuch"), "no such directory"),
        (lambda c: c["process"].update(args=[]), "process.args"),
        (lambda c: c["process"].update(cwd="relative"), "absolute path"),
        (lambda c: c["process"].update(user={"uid": -1}), "process.user.uid"),
        (lambda c: c["process"].update(rlimits=[{"type": "RLIMIT_X", "soft": 1, "hard": 1}]), "wrong rlimit value"),
        (lambda c: c["linux"]["namespaces"].append({"type": "nosuch"}), "unknown namespace"),
        (lambda c: c["linux"]["namespaces"].append({"type": "pid"}), "given twice"),
        (lambda c: c["linux"]["namespaces"][0].update(path="/nosuch"), "cannot join"),
        (lambda c: c["mounts"].append({"destination": "/x", "type": "nosuch"}), "error mounting"),
        (lambda c: c["linux"].update(seccomp={"defaultAction": "SCMP_ACT_NOSUCH"}), "not a valid action"),
        (lambda c: c["linux"].update(intelRdt={"closID": "x"}), "not supported"),
        (lambda c: (c.update(domainname="a"), c["linux"].update(sysctl={"kernel.domainname": "b"})), "conflicts with the OCI"),
        (lambda c: c["linux"]["resources"].update(memory={"limit": 4096}), "cgroup|container init|process"),
    ],
)
def test_bad_configurations_are_refused_and_leave_nothing(runtime: Any, change: Any, message: str) -> None:
    change(runtime.config)
    runtime.write()
    done = runtime.call("run", "--bundle", runtime.bundle, runtime.id)
    assert done.returncode != 0
    assert any(part in done.stderr for part in message.split("|")), done.stderr
    assert "Traceback" not in done.stderr
    assert runtime.call("list", "-q").stdout == ""
    assert not cgroups.open_cgroup(runtime.cgroup).exists()


def test_what_is_no_json_is_refused(runtime: Any) -> None:
    (runtime.bundle / "config.json").write_text('{"ociVersion": ')
    assert "config.json" in runtime.call("run", "--bundle", runtime.bundle, runtime.id).stderr
    (runtime.bundle / "config.json").unlink()
    assert "config.json not found" in runtime.call("run", "--bundle", runtime.bundle, runtime.id).stderr


def test_errors_go_to_the_log_as_json(runtime: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = runtime.call("--log", log, "--log-format", "json", "state", "nosuch")
    assert done.returncode == 1
    line = json.loads(log.read_text())
    assert (line["level"], line["msg"]) == ("error", "container does not exist: nosuch")


def test_a_create_that_was_killed_leaves_what_delete_takes_away(runtime: Any) -> None:
    runtime.config["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1"]}]}
    runtime.config["process"]["args"] = ["true"]
    runtime.write()
    argv = [
        Path(__file__).parents[3] / "lowrt/launcher",
        "--root",
        runtime.root,
        "create",
        "--bundle",
        runtime.bundle,
        runtime.id,
    ]
    create = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: cgroups.open_cgroup(runtime.cgroup).pids(), what="the container's first process")
    create.kill()
    create.wait()
    wait_for(lambda: not cgroups.open_cgroup(runtime.cgroup).pids(), what="the first process to die with its parent")
    runtime.call("delete", "--force", runtime.id, check=True)
    assert not cgroups.open_cgroup(runtime.cgroup).exists()
    assert not (runtime.root / runtime.id).exists()


def test_a_terminal_over_the_console_socket(runtime: Any, tmp_path: Path) -> None:
    import socket

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "console"))
    listener.listen()
    runtime.config["process"]["terminal"] = True
    runtime.config["process"]["consoleSize"] = {"width": 99, "height": 33}
    runtime.config["process"]["args"] = ["sh", "-c", "tty; stty size; cat"]
    runtime.write()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False}
    runtime.call("create", "--bundle", runtime.bundle, "--console-socket", tmp_path / "console", runtime.id, check=True, **quiet)
    connection, _ = listener.accept()
    _, descriptors, _, _ = socket.recv_fds(connection, 100, 1)
    master = descriptors[0]
    runtime.call("start", runtime.id, check=True)
    seen = b""
    while b"33 99" not in seen:
        seen += os.read(master, 1000)
    assert b"/dev/pts/0" in seen or b"/dev/console" in seen
    os.write(master, b"typed\n\x04")
    wait_for(lambda: runtime.state()["status"] == "stopped", what="ctrl-d to end it")
    os.close(master)
    connection.close()
    listener.close()


def test_called_in_process_it_leaves_the_caller_as_it_was(runtime: Any, tmp_path: Path) -> None:
    from lowrt import main

    runtime.config["process"]["args"] = ["sh", "-c", "echo in process"]
    runtime.write()
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    null = os.open("/dev/null", os.O_RDWR)
    before = (sorted(os.listdir("/proc/self/fd")), os.getcwd(), signal.getsignal(signal.SIGTERM))
    for arguments in (["create", "--bundle", str(runtime.bundle), runtime.id], ["start", runtime.id]):
        assert main.run(["--root", str(runtime.root), *arguments], (null, out, out), os.environ) == 0
    pid = json.loads((runtime.root / runtime.id / "state.json").read_text())["pid"]
    assert os.waitpid(pid, 0) == (pid, 0)
    assert main.run(["--root", str(runtime.root), "delete", runtime.id], (null, out, out), os.environ) == 0
    assert (sorted(os.listdir("/proc/self/fd")), os.getcwd(), signal.getsignal(signal.SIGTERM)) == before
    assert (tmp_path / "out").read_text() == "in process\n"
    os.close(out)
    os.close(null)


def test_the_cold_path_imports_nothing_heavy(runtime: Any) -> None:
    runtime.config["process"]["args"] = ["true"]
    runtime.write()
    heavy = "json re enum typing socket signal argparse subprocess logging dataclasses"
    code = (
        "import sys, os; sys.path.insert(0, sys.argv[1]); from lowrt.main import run;"
        "status = run(sys.argv[2:], (0, 1, 2), os.environ);"
        f"print(status, *sorted(set({heavy!r}.split()) & set(sys.modules)))"
    )
    lowrt = ("--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id)
    argv = ["/usr/bin/python3", "-IS", "-c", code, LOWRT.parents[1], *lowrt]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert done.stdout == "0\n", done.stdout + done.stderr


def test_exec_into_a_cgroup_that_is_not_there_fails_and_ends(runtime: Any) -> None:
    runtime.start("sleep", "100")
    done = runtime.call("exec", "--cgroup", "nosuch", runtime.id, "true")
    assert done.returncode != 0
    assert "no such file or directory" in done.stderr
    assert runtime.call("exec", runtime.id, "true").returncode == 0
