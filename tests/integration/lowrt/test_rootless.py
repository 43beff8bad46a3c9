"""Containers of a user without privileges: their own ID, more of them with newuidmap, and no control groups."""

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strata.linux import cgroups
from tests.conftest import Lane, wait_for
from tests.integration.lowrt.conftest import Runtime

REPOSITORY = Path(__file__).parents[3]
UID, GID, FIRST_SUBORDINATE = 12345, 12346, 300000


class Rootless(Runtime):
    """lowrt of a user, in a folder that is theirs. The user's name and subordinate IDs are there in `with_names` only."""

    def __init__(self, folder: Path) -> None:
        # Not super's: that bundle is root's, and has a cgroup.
        self.folder, self.bundle, self.id = folder, folder / "bundle", f"t{uuid.uuid4().hex[:10]}"
        # A copy, because the repository may lie where only root can go.
        for name in ("lowrt", "strata/linux"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "snapshot"))
        shutil.copy(REPOSITORY / "strata/__init__.py", folder / "strata")
        self.launcher = folder / "lowrt/launcher"
        subprocess.run(["/usr/bin/python3", folder / "lowrt/boot/snapshot.py"], check=True)
        (self.bundle / "rootfs/bin").mkdir(parents=True)
        (self.bundle / "rootfs/tmp").mkdir()
        shutil.copy("/bin/busybox", self.bundle / "rootfs/bin/busybox")
        for name in ("sh", "cat", "id", "touch", "sleep", "ps", "ls", "mount", "hostname", "tty", "true"):
            (self.bundle / "rootfs/bin" / name).symlink_to("busybox")
        (folder / "run").mkdir(mode=0o700)
        for kind in ("passwd", "group", "subuid", "subgid"):
            (folder / kind).write_text({
                "passwd": f"root:x:0:0::/root:/bin/sh\nada:x:{UID}:{GID}::/:/bin/sh\n",
                "group": f"root:x:0:\nada:x:{GID}:\n",
            }.get(kind, f"ada:{FIRST_SUBORDINATE}:1000\n"))  # fmt: skip
        subprocess.run(["chown", "-R", f"{UID}:{GID}", folder], check=True)
        folder.chmod(0o755)
        self.call("spec", "--rootless", check=True, cwd=self.bundle)
        self.config = json.loads((self.bundle / "config.json").read_text())
        self.config["process"]["terminal"] = False
        self.config["root"]["readonly"] = False
        self.names = False

    def command(self, *argv: str | Path) -> list[str | Path]:
        user: list[str | Path] = [*self.prefix, "setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups", "env", "-i"]
        user += [
            f"XDG_RUNTIME_DIR={self.folder}/run",
            "PATH=/usr/bin:/bin",
            f"HOME={self.folder}",
            self.launcher,
            "--root",
            f"{self.folder}/run/lowrt",
            *argv,
        ]
        if not getattr(self, "names", False):
            return user
        binds = "".join(f"mount --bind {self.folder}/{name} /etc/{name}; " for name in ("passwd", "group", "subuid", "subgid"))
        # newuidmap asks for who one is, and what one was given: in a mount namespace these files can be others.
        binds += "".join(f"[ -e /etc/{name} ] || exit 9; " for name in ("subuid", "subgid"))
        return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", f'{binds} exec "$@"', "sh", *user]

    def call(self, *argv: str | Path, check: bool = False, **options: Any) -> "subprocess.CompletedProcess[str]":
        given = {"stdin": subprocess.DEVNULL, "timeout": 30, "capture_output": True, **options}
        done = subprocess.run(self.command(*argv), text=True, **given)
        assert not check or done.returncode == 0, done.stderr
        return done

    def map_subordinates(self) -> None:
        self.names = True
        for name, own in (("uidMappings", UID), ("gidMappings", GID)):
            self.config["linux"][name] = [
                {"containerID": 0, "hostID": own, "size": 1},
                {"containerID": 1, "hostID": FIRST_SUBORDINATE, "size": 1000},
            ]


@pytest.fixture
def rootless() -> Iterator[Rootless]:
    with tempfile.TemporaryDirectory(prefix="strata-test-") as folder:
        made = Rootless(Path(folder))
        try:
            yield made
        finally:
            made.clean()


def test_a_user_runs_a_container_as_its_root(rootless: Rootless) -> None:
    printed = rootless.shell(
        "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; touch /file; hostname"
    )
    assert printed.split() == ["0", "0", "0", str(UID), "1", "0", str(GID), "1", "deny", "lowrt"]
    assert (rootless.bundle / "rootfs/file").stat().st_uid == UID
    assert rootless.call("list", "--quiet").stdout == ""
    assert list((rootless.folder / "run/lowrt").glob("t*")) == []


def test_a_user_without_rights_in_cgroup_v2_does_without(rootless: Rootless, v2_lane: Lane) -> None:
    rootless.prefix = v2_lane.prefix
    linux = rootless.config["linux"]
    linux["namespaces"] = [*(entry for entry in linux["namespaces"] if entry["type"] != "cgroup"), {"type": "cgroup"}]
    printed = rootless.shell("cat /proc/self/cgroup; id -u; ls -A /sys/fs/cgroup")
    assert printed.endswith("\n0\n")  # of the machine's groups nothing is shown, as there is none of its own
    assert rootless.id not in printed


def test_what_is_mounted_for_a_user(rootless: Rootless) -> None:
    printed = rootless.shell("mount; ls /sys; cat /dev/null; ls -l /dev/pts/ptmx; echo >/dev/shm/x; touch /dev/mqueue/x")
    for place, kind in (
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
    ):
        assert f"on {place} type {kind}" in printed
    assert "kernel" in printed.split()


def test_the_life_of_a_users_container(rootless: Rootless) -> None:
    pid = rootless.start("sleep", "100")
    assert os.stat(f"/proc/{pid}").st_uid == UID
    assert rootless.state()["status"] == "running"
    assert rootless.call("exec", rootless.id, "id", "-u").stdout == "0\n"
    assert "sleep" in rootless.call("exec", rootless.id, "ps").stdout
    listed = json.loads(rootless.call("list", "--format", "json", check=True).stdout)
    assert [one["id"] for one in listed] == [rootless.id]
    assert (rootless.folder / "run/lowrt" / rootless.id).is_dir()
    rootless.call("kill", rootless.id, "KILL", check=True)
    wait_for(lambda: rootless.state()["status"] == "stopped", what="the container to stop")
    rootless.call("delete", rootless.id, check=True)
    assert "does not exist" in rootless.call("state", rootless.id).stderr


def test_a_created_container_of_a_user_is_started_and_deleted_by_force(rootless: Rootless) -> None:
    rootless.config["process"]["args"] = ["sh", "-c", "echo started >/said; sleep 100"]
    rootless.write()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False}
    rootless.call("create", "--bundle", rootless.bundle, rootless.id, check=True, **quiet)
    assert rootless.state()["status"] == "created"
    for _ in range(2):  # its first process is hidden, and hands out its namespaces
        done = rootless.call("exec", rootless.id, "sh", "-c", "id -u; hostname; ps; ls /bin/sh")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("0\nlowrt\nPID ")
        assert len([line for line in done.stdout.splitlines() if "lowrt" in line]) == 2, done.stdout
    assert rootless.state()["status"] == "created"
    rootless.call("start", rootless.id, check=True)
    wait_for(lambda: (rootless.bundle / "rootfs/said").exists(), what="the program")
    pid = rootless.state()["pid"]
    rootless.call("delete", "--force", rootless.id, check=True)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), what="its process to end")


def test_a_terminal_for_a_user(rootless: Rootless) -> None:
    rootless.start("sleep", "100")
    line = " ".join(map(str, rootless.command("exec", "--tty", rootless.id, "tty")))
    command = ["script", "--quiet", "--command", line, "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0
    assert "/dev/pts/0" in done.stdout


def test_subordinate_ids_are_mapped_by_newuidmap(rootless: Rootless) -> None:
    rootless.map_subordinates()
    (rootless.bundle / "rootfs/tmp").chmod(0o1777)
    rootless.config["process"]["user"] = {"uid": 5, "gid": 6, "additionalGids": [7, 8]}
    printed = rootless.shell("id -u; id -g; id -G; touch /tmp/file; cat /proc/self/setgroups")
    assert printed.split() == ["5", "6", "6", "7", "8", "allow"]
    owner = (rootless.bundle / "rootfs/tmp/file").stat()
    assert (owner.st_uid, owner.st_gid) == (FIRST_SUBORDINATE + 4, FIRST_SUBORDINATE + 5)
    pid = rootless.start("sleep", "100")
    assert os.stat(f"/proc/{pid}").st_uid == FIRST_SUBORDINATE + 4
    assert rootless.call("exec", "--user", "9:9", rootless.id, "id", "-u").stdout == "9\n"
    rootless.call("delete", "--force", rootless.id, check=True)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), what="its process to end")


def test_ids_that_were_not_given_are_refused_by_newuidmap(rootless: Rootless) -> None:
    rootless.map_subordinates()
    rootless.config["linux"]["uidMappings"][1]["hostID"] = 1
    done = rootless.run("true")
    assert done.returncode == 1
    assert "newuidmap refused: newuidmap: uid range [1-1001) -> [1-1001) not allowed" in done.stderr
    assert rootless.call("list", "--quiet").stdout == ""


def test_without_newuidmap_the_error_says_what_is_missing(rootless: Rootless) -> None:
    rootless.map_subordinates()
    rootless.config["process"]["args"] = ["true"]
    rootless.write()
    command = [
        str(word).replace("PATH=/usr/bin:/bin", f"PATH={rootless.folder}") for word in rootless.command("run", rootless.id)
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=rootless.bundle, check=False)
    assert done.returncode == 1
    assert "newuidmap is needed to map more than one's own ID, and is not in PATH (Debian's package uidmap)" in done.stderr
    assert rootless.call("list", "--quiet").stdout == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["linux"].update(namespaces=[{"type": "mount"}], uidMappings=None, gidMappings=None, ),
         "rootless container requires user namespaces"),
        (lambda c: c["linux"].update(cgroupsPath="/strata-test-theirs"), "permission denied"),
        (lambda c: c["linux"].update(uidMappings=[]), "no uid mappings found"),
        (lambda c: c["linux"].update(uidMappings=[{"containerID": 1, "hostID": UID, "size": 1}]), "no mapping found for uid 0"),
        (lambda c: c["process"].update(user={"uid": 5}), "cannot setuid to unmapped uid 5 in user namespace"),
        (lambda c: c["process"].update(user={"gid": 5}), "cannot setgid to unmapped gid 5 in user namespace"),
        (lambda c: c["process"].update(oomScoreAdj=-500), "failed to set oomScoreAdj to -500: permission denied"),
        (lambda c: c["mounts"].append({"destination": "/x", "type": "tmpfs", "options": ["gid=5"]}),
         "cannot specify gid=5 mount option for rootless container"),
    ],
)  # fmt: skip
def test_what_a_user_cannot_have_is_named(rootless: Rootless, change: Any, message: str) -> None:
    change(rootless.config)
    if not rootless.config["linux"].get("uidMappings"):
        rootless.config.pop("hostname")
    done = rootless.run("true")
    assert done.returncode == 1
    assert message in done.stderr.lower() if message.islower() else message in done.stderr
    assert "Traceback" not in done.stderr
    assert rootless.call("list", "--quiet").stdout == ""


def test_a_user_may_be_killed_more_readily(rootless: Rootless) -> None:
    rootless.config["process"]["oomScoreAdj"] = 500
    assert rootless.shell("cat /proc/self/oom_score_adj") == "500\n"


def test_a_users_seccomp_filters_are_kept_in_their_own_folder(rootless: Rootless) -> None:
    rootless.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
    }
    assert "Seccomp:\t2" in rootless.shell("cat /proc/self/status")
    folder = rootless.folder / "run/lowrt/.seccomp"
    assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (UID, 0o700)
    assert "Seccomp:\t2" in rootless.shell("cat /proc/self/status")


def test_a_user_is_warned_of_a_container_whose_processes_cannot_be_found(rootless: Rootless) -> None:
    linux = rootless.config["linux"]
    linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] != "pid"]
    rootless.config["mounts"] = [mount for mount in rootless.config["mounts"] if mount["type"] != "proc"]
    linux["maskedPaths"] = linux["readonlyPaths"] = []
    done = rootless.run("true")
    assert (done.returncode, "Such configuration is strongly discouraged" in done.stderr) == (0, True)


@pytest.mark.skipif(cgroups.mode() != "hybrid", reason="there is no v2 tree beside cgroup v1 here")
def test_a_user_who_was_given_folders_of_cgroup_v1_needs_none_in_the_v2_tree_beside_it(rootless: Rootless) -> None:
    given = cgroups.open_cgroup(f"/strata-test-{rootless.id}")
    given.create()
    try:
        for name, folder in given.paths.items():
            if name == "" or name.startswith("name="):
                continue
            for path in (folder, f"{folder}/cgroup.procs", f"{folder}/cpuset.cpus", f"{folder}/cpuset.mems"):
                if os.path.exists(path):
                    os.chown(path, UID, GID)
        named = next((folder for name, folder in given.paths.items() if name.startswith("name=")), None)
        if named:
            os.chown(named, UID, GID)
            os.chown(f"{named}/cgroup.procs", UID, GID)
        rootless.config["linux"]["cgroupsPath"] = f"/strata-test-{rootless.id}/inner"
        rootless.config["linux"]["resources"] = {"pids": {"limit": 17}}
        rootless.start("sleep", "100")
        assert "pids" in rootless.call("exec", rootless.id, "ls", "/sys/fs/cgroup").stdout.split()
        inner = cgroups.open_cgroup(f"/strata-test-{rootless.id}/inner")
        assert Path(inner.paths["pids"], "pids.max").read_text() == "17\n"
        assert not os.path.exists(inner.paths[""])
        assert rootless.call("exec", rootless.id, "cat", "/proc/self/cgroup").stdout.count("inner\n") == len(inner.paths) - 1
        rootless.call("delete", "--force", rootless.id, check=True)
        assert not any(os.path.exists(folder) for folder in inner.folders())
    finally:
        given.destroy()
