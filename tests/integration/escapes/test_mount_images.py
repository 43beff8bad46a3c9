"""Images and configurations made for an escape while the container's root file system is put together: links where folders
should be, volumes where lowrt looks, files that are not what their path says."""

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from strata.linux import cgroups, mounts
from tests.integration.escapes.conftest import SUBORDINATE_ID
from tests.integration.lowrt.conftest import LOWRT, Runtime

GiveUserNamespace = Callable[[Runtime], None]


def add(runtime: Runtime, destination: str, source: object, *options: str, kind: str = "") -> None:
    runtime.config["mounts"].append({"destination": destination, "source": str(source), "options": list(options), "type": kind})


def add_one(runtime: Runtime, destination: str, kind: str, source: Path) -> None:
    """A bind of the source, or a new file system of another kind."""
    if kind == "bind":
        add(runtime, destination, source, "bind")
    else:
        add(runtime, destination, kind, kind=kind)


def without(runtime: Runtime, *destinations: str) -> None:
    """Takes mounts away, also those below."""
    kept = [mount for mount in runtime.config["mounts"] if not mount["destination"].startswith(destinations)]
    runtime.config["mounts"] = kept


def run_in(runtime: Runtime, script: str) -> subprocess.CompletedProcess[str]:
    """lowrt run in a mount namespace of its own, in which a shell script has done something before."""
    runtime.write()
    command = [LOWRT, "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id]
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", f'{script}; exec "$@"', "sh", *command]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False)


# --- /proc


@pytest.mark.parametrize(
    ("destination", "link"),
    [("/proc", ""), ("/proc/", ""), ("//proc/.", ""), ("x/../proc", ""), ("/innocent", "proc"), ("/innocent", "/../../proc")],
)
@pytest.mark.parametrize("kind", ["bind", "tmpfs", "sysfs"])
def test_only_a_procfs_is_mounted_on_proc(runtime: Runtime, tmp_path: Path, destination: str, link: str, kind: str) -> None:
    """CVE-2019-16884: an image declared /proc as a volume. The runtime wrote the AppArmor label to a file of the image's, and the
    program ran unconfined. Whatever the path looks like, only a procfs comes there.
    """
    (tmp_path / "volume/self/attr").mkdir(parents=True)
    if link:
        (runtime.bundle / "rootfs/innocent").symlink_to(link)
        (runtime.bundle / "rootfs/proc").mkdir()
    add_one(runtime, destination, kind, tmp_path / "volume")
    done = runtime.run("true")
    assert done.returncode == 1
    if link and kind == "sysfs":
        assert 'filesystem "sysfs" must be mounted on ordinary directory' in done.stderr
    else:
        assert f'"{runtime.bundle}/rootfs/proc" cannot be mounted because it is not of type proc' in done.stderr


@pytest.mark.parametrize(
    "destination", ["/proc/self/attr", "/proc/sys", "/proc/1", "/proc/self/../sys/kernel", "/innocent", "/deep/in"]
)
@pytest.mark.parametrize("kind", ["bind", "tmpfs", "proc"])
def test_nothing_is_mounted_in_proc(runtime: Runtime, tmp_path: Path, destination: str, kind: str) -> None:
    """CVE-2023-28642 and the others of its kind: a mount somewhere in /proc, also by a link of the image's, hides the files by
    which a runtime confines a program. What lxcfs serves is let through.
    """
    rootfs = runtime.bundle / "rootfs"
    (rootfs / "innocent").symlink_to("/proc/self/attr")
    (rootfs / "deep").symlink_to("proc/sys")
    add_one(runtime, destination, kind, tmp_path)
    done = runtime.run("true")
    assert done.returncode == 1
    inside = "cannot be mounted because it is inside /proc" in done.stderr
    # Where the place is a link's target that cannot be made in a procfs, or a link at which nothing may be mounted.
    assert inside or "create mountpoint for" in done.stderr or "must be mounted on ordinary directory" in done.stderr, done.stderr


def test_what_lxcfs_serves_is_mounted_in_proc(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "uptime").write_text("served\n")
    add(runtime, "/proc/uptime", tmp_path / "uptime", "bind")
    add(runtime, "/proc/sys/kernel/ns_last_pid", tmp_path / "uptime", "bind")
    runtime.config["linux"]["readonlyPaths"].remove("/proc/sys")
    assert runtime.shell("cat /proc/uptime /proc/sys/kernel/ns_last_pid") == "served\nserved\n"


def test_a_procfs_may_be_bound_on_proc(runtime: Runtime, tmp_path: Path) -> None:
    """As nested containers and shared PID namespaces have it; it is masked like a new one."""
    without(runtime, "/proc")
    add(runtime, "/proc", "/proc", "rbind")
    assert runtime.shell("test -e /proc/self/status; cat /proc/keys; ! mkdir /proc/sys/x 2>/dev/null; cat /proc/timer_list") == ""


@pytest.mark.parametrize("name", ["proc", "sys"])
@pytest.mark.parametrize("target", ["elsewhere", "/elsewhere", "../../..", "/nowhere"])
def test_proc_and_sys_are_no_links(runtime: Runtime, name: str, target: str) -> None:
    """CVE-2019-19921, the first half of it: /proc of the image was a link to a volume, and the runtime mounted where it led."""
    (runtime.bundle / "rootfs/elsewhere").mkdir()
    (runtime.bundle / "rootfs" / name).symlink_to(target)
    done = runtime.run("true")
    assert done.returncode == 1
    kind = {"proc": "proc", "sys": "sysfs"}[name]
    assert f'filesystem "{kind}" must be mounted on ordinary directory' in done.stderr
    assert list((runtime.bundle / "rootfs/elsewhere").iterdir()) == []


@pytest.mark.parametrize("cover", ["file", "folder", "link"])
def test_what_is_written_to_proc_is_written_to_a_procfs(runtime: Runtime, tmp_path: Path, cover: str) -> None:
    """CVE-2025-52881: with the mounts of a racing container, runc's own writes to /proc went to files of the attacker's choice: a
    label to nowhere, or a sysctl's value to /proc/sysrq-trigger. Here the attacker has covered what lowrt writes to, in the
    namespace that it starts in; a runtime that trusts the path writes into the decoy.
    """
    decoy = tmp_path / "decoy"
    (decoy / "kernel").mkdir(parents=True)
    (decoy / "kernel/domainname").write_text("untouched")
    (decoy / "kernel/cap_last_cap").write_text("40")
    covering = {
        "file": "mount --bind $1/kernel/domainname /proc/sys/kernel/domainname",
        "folder": "mount --bind $1/kernel /proc/sys/kernel",
        "link": "mount -t tmpfs x /proc/sys; ln -s $1/kernel /proc/sys/kernel",
    }[cover]
    naive = "echo lost >/proc/sys/kernel/domainname"
    done = subprocess.run(["unshare", "--mount", "sh", "-ec", f"{covering}; {naive}", "sh", decoy], check=False)
    assert done.returncode == 0
    assert (decoy / "kernel/domainname").read_text() == "lost\n"
    (decoy / "kernel/domainname").write_text("untouched")
    runtime.config["linux"]["sysctl"] = {"kernel.domainname": "own"}
    runtime.config["process"]["args"] = ["cat", "/proc/sys/kernel/domainname"]
    done = run_in(runtime, covering.replace("$1", str(decoy)))
    assert (decoy / "kernel/domainname").read_text() == "untouched"
    assert (done.returncode, done.stdout) == (0, "own\n"), done.stderr


def test_a_proc_that_is_none_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    """The same with all of /proc (CVE-2025-52881): a tmpfs with what a look at it would find, before the first mount is made."""
    fake = tmp_path / "fake"
    (fake / "self/ns").mkdir(parents=True)
    runtime.config["process"]["args"] = ["true"]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from lowrt import rootfs; from strata.linux import mounts, syscalls;"
        "syscalls.unshare(0x20000); mounts.mount('', '/', '', mounts.PRIVATE | mounts.REC);"
        "mounts.mount(sys.argv[2], '/proc', '', mounts.BIND);"
        "rootfs.Rootfs({'linux': {'namespaces': [{'type': 'mount'}]}}, sys.argv[3], []).prepare()"
    )
    argv = ["/usr/bin/python3", "-IS", "-c", code, LOWRT.parents[1], fake, runtime.bundle / "rootfs"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert "not a procfs: '/proc'" in done.stderr
    assert not (runtime.bundle / "rootfs/dev").exists()


# --- masks


@pytest.mark.parametrize("what", ["link", "file", "folder", "device", "nothing"])
def test_masks_are_the_hosts_null_device(runtime: Runtime, tmp_path: Path, what: str) -> None:
    """CVE-2025-31133: files were masked with the container's own /dev/null. Where the image had a link there, what it pointed to
    was bound over the masked file, writable: an attacker's core_pattern. `test_mount_races` has the race.
    """
    dev = tmp_path / "dev"
    dev.mkdir()
    target = runtime.bundle / "rootfs/target"
    target.write_text("the attacker's")
    if what == "link":
        (dev / "null").symlink_to("/target")
    elif what == "file":
        (dev / "null").write_text("the attacker's")
    elif what == "folder":
        (dev / "null").mkdir()
    elif what == "device":
        os.mknod(dev / "null", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    without(runtime, "/dev")
    add(runtime, "/dev", dev, "bind")
    (runtime.bundle / "rootfs/secret").write_text("secret")
    runtime.config["linux"]["maskedPaths"] += ["/secret"]
    assert runtime.shell("cat /secret; busybox stat -c '%F %t:%T' /secret") == "character special file 1:3\n"
    assert target.read_text() == "the attacker's"


# --- terminals


@pytest.fixture
def with_terminal(runtime: Runtime) -> Runtime:
    runtime.config["process"]["terminal"] = True
    runtime.config["process"]["args"] = ["tty"]
    return runtime


@pytest.mark.parametrize("target", ["/proc/self/attr/exec", "/target", "/nowhere", "pts/ptmx", "../../../target"])
def test_the_console_is_not_bound_where_a_link_leads(with_terminal: Runtime, target: str) -> None:
    """CVE-2025-52565: /dev/console was made by following what the image had there, before masks and read-only paths were in
    place. A terminal on /proc/self/attr/exec swallows the label that confines the program, one on any file hides it.
    """
    runtime = with_terminal
    (runtime.bundle / "rootfs/target").write_text("")
    without(runtime, "/dev")
    add(runtime, "/dev/pts", "devpts", "newinstance", "ptmxmode=0666", kind="devpts")
    (runtime.bundle / "rootfs/dev").mkdir()
    (runtime.bundle / "rootfs/dev/console").symlink_to(target)
    runtime.write()
    done = runtime.call("run", "--bundle", runtime.bundle, runtime.id)
    assert done.returncode == 1
    assert "/dev/console: too many levels of symbolic links" in done.stderr
    assert not (runtime.bundle / "rootfs/nowhere").exists()


def test_the_console_is_not_bound_in_proc(with_terminal: Runtime) -> None:
    """The same with all of /dev as a link (CVE-2026-41579): no device is made in a procfs, nor is anything bound there."""
    runtime = with_terminal
    without(runtime, "/dev")
    (runtime.bundle / "rootfs/dev").symlink_to("proc/sys/kernel")
    runtime.write()
    done = runtime.call("run", "--bundle", runtime.bundle, runtime.id)
    assert done.returncode == 1
    assert "error creating device nodes" in done.stderr


@pytest.mark.parametrize("what", ["file", "fifo", "link", "device", "other"])
def test_a_terminal_comes_from_a_devpts(with_terminal: Runtime, tmp_path: Path, what: str) -> None:
    """The other half of CVE-2025-52565: the image's, or a volume's, /dev/pts/ptmx. What lowrt opens there it would hand out as
    the terminal's other side; a FIFO would hold it up for ever.
    """
    runtime = with_terminal
    pts = tmp_path / "pts"
    pts.mkdir()
    ptmx = pts / "ptmx"
    if what == "file":
        ptmx.write_text("")
    elif what == "fifo":
        os.mkfifo(ptmx)
    elif what == "link":
        ptmx.symlink_to("/dev/ptmx")
    else:
        # The multiplexer's own numbers, where no devpts is; or those of another device.
        os.mknod(ptmx, stat.S_IFCHR | 0o666, os.makedev(5, 2) if what == "device" else os.makedev(1, 5))
    without(runtime, "/dev/pts")
    add(runtime, "/dev/pts", pts, "bind")
    runtime.write()
    done = runtime.call("run", "--bundle", runtime.bundle, runtime.id)
    assert done.returncode == 1
    assert "/dev/pts/ptmx: not the multiplexer of a devpts" in done.stderr


# --- /dev


@pytest.mark.parametrize("absolute", [True, False])
def test_a_dev_that_is_a_link_leads_nowhere(runtime: Runtime, tmp_path: Path, absolute: bool) -> None:
    """CVE-2026-41579: with /dev of the image as a link, runc removed a ptmx and made links and nodes where it pointed to, on the
    host. Here they are made at that path inside the root, as the container itself would see it.
    """
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "ptmx").write_text("stays")
    without(runtime, "/dev")
    (runtime.bundle / "rootfs/dev").symlink_to(outside if absolute else os.path.relpath(outside, runtime.bundle / "rootfs"))
    done = runtime.run("sh", "-c", "test -c /dev/null && readlink /dev/ptmx")
    assert (done.returncode, done.stdout) == (0, "pts/ptmx\n"), done.stderr
    assert os.listdir(outside) == ["ptmx"]
    assert (outside / "ptmx").read_text() == "stays"


def test_a_device_is_not_made_through_a_link(runtime: Runtime, tmp_path: Path) -> None:
    """Neither the node's own name nor a folder on its way leads out, whatever mode and owner it shall get."""
    (tmp_path / "victim").write_text("")
    (tmp_path / "victim").chmod(0o600)
    (tmp_path / "outside").mkdir()
    rootfs = runtime.bundle / "rootfs"
    (rootfs / "name").symlink_to(tmp_path / "victim")
    (rootfs / "folder").symlink_to(tmp_path / "outside")
    device = {"type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 1000, "gid": 1000}
    runtime.config["linux"]["devices"] = [{**device, "path": "/folder/node"}]
    assert runtime.run("true").returncode == 0
    assert list((tmp_path / "outside").iterdir()) == []
    runtime.config["linux"]["devices"] = [{**device, "path": "/name"}]
    assert '"/name" exists and is not the character device 1:3' in runtime.run("true").stderr
    status = (tmp_path / "victim").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, 0)


# --- places and sources


def test_no_place_of_a_mount_is_out_of_the_root(runtime: Runtime, tmp_path: Path) -> None:
    """CVE-2021-30465 without the race: links that lead up, out, in circles, through /proc's magic ones, and to nowhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    rootfs = runtime.bundle / "rootfs"
    links = {"absolute": outside, "up": "../" * 30 + str(outside).lstrip("/"), "chain": "up", "missing": outside / "not/there"}
    for name, target in links.items():
        (rootfs / name).symlink_to(target)
    (rootfs / "circle").symlink_to("/circle")
    before = {mount.target for mount in mounts.mountinfo()}
    for name in (*links, "circle", "proc/self/root", "proc/1/cwd", "proc/self/fd/3"):
        without(runtime, "/volume")
        for kind in ("tmpfs", "bind"):
            runtime.config["mounts"] = [m for m in runtime.config["mounts"] if "attack" not in m["destination"]]
            add_one(runtime, f"/{name}/attack", kind, outside)
            done = runtime.run("true")
            assert done.returncode == 0 or "create mountpoint for" in done.stderr or "inside /proc" in done.stderr, done.stderr
    assert list(outside.iterdir()) == []
    assert {m.target for m in mounts.mountinfo() if str(tmp_path) in m.target} <= before


def test_tmpcopyup_copies_no_file_of_the_host(runtime: Runtime, tmp_path: Path) -> None:
    """The helpers of a mount follow no links either: one that is in the folder is copied as a link."""
    (tmp_path / "secret").write_text("the host's secret")
    source = runtime.bundle / "rootfs/full"
    (source / "folder").mkdir(parents=True)
    (source / "file").symlink_to(tmp_path / "secret")
    (source / "folder/up").symlink_to("../../../../secret")
    (source / "all").symlink_to("/")
    add(runtime, "/full", "tmpfs", "tmpcopyup", kind="tmpfs")
    printed = runtime.shell("cd /full; busybox stat -c %F file folder/up all; cat file folder/up 2>/dev/null || true")
    assert printed.splitlines() == ["symbolic link"] * 3


# --- cgroups in user namespaces


@pytest.fixture
def owned_cgroup(runtime: Runtime) -> Iterator[str]:
    """A group, beside the container's, that the container's root owns: what a delegation to a user looks like from within."""
    path = f"{runtime.cgroup}-owned"
    group = cgroups.open_cgroup(path)
    group.create()
    for folder in group.folders():
        os.chown(folder, SUBORDINATE_ID, SUBORDINATE_ID)
    try:
        yield path
    finally:
        group.remove()


@pytest.mark.parametrize("lane", ["hybrid", "v2"])
@pytest.mark.parametrize("namespace", [True, False])
@pytest.mark.parametrize("sys", ["bound", "new"])
def test_no_cgroup_is_writable_in_a_user_namespace(
    runtime: Runtime, give_user_namespace: GiveUserNamespace, owned_cgroup: str, lane: str, namespace: bool, sys: str
) -> None:  # fmt: skip
    """CVE-2023-25809: a rootless container without a cgroup namespace of its own, or with the host's /sys bound read-only, had
    /sys/fs/cgroup writable, because `ro` of a bind does not reach the mounts below it: it could make groups in what was
    delegated to the user. lowrt covers them with mounts that are read-only themselves.
    """
    give_user_namespace(runtime)
    others = [entry for entry in runtime.config["linux"]["namespaces"] if entry["type"] != "cgroup"]
    runtime.config["linux"]["namespaces"] = [*others, {"type": "cgroup"}] if namespace else others
    if sys == "bound":
        for mount in runtime.config["mounts"]:
            if mount["destination"] == "/sys":
                mount.update(type="none", source="/sys", options=["rbind", "nosuid", "noexec", "nodev", "ro"])
    name = owned_cgroup.strip("/")
    attack = f"for group in /sys/fs/cgroup /sys/fs/cgroup/*/ /sys/fs/cgroup/{name} /sys/fs/cgroup/*/{name}; do"
    attack += ' mkdir $group/attack 2>/dev/null && rmdir $group/attack && echo "$group"; done; cat /proc/self/mountinfo'
    runtime.config["process"]["args"] = ["sh", "-c", attack]
    if lane == "v2":
        owned = f"mkdir /sys/fs/cgroup/{name}; chown {SUBORDINATE_ID} /sys/fs/cgroup/{name}"
        only = "umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup"
        done = run_in(runtime, f"{only}; test -d /sys/fs/cgroup/{name} || {{ {owned}; }}")
    else:
        done = run_in(runtime, "true")
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert [line for line in printed if " - " not in line] == []
    # Of several mounts at a place the last one counts.
    table = {mount.target: mount for mount in map(mounts.Mount, printed) if mount.target.startswith("/sys/fs/cgroup")}
    assert {mount.options.split(",")[0] for mount in table.values()} == {"ro"}


def test_a_bound_sys_alone_leaves_what_is_below_it_as_it_is(
    runtime: Runtime, give_user_namespace: GiveUserNamespace, owned_cgroup: str
) -> None:  # fmt: skip
    """What CVE-2023-25809 was: without a mount of cgroups over it, a read-only bind of /sys has the user's group writable."""
    give_user_namespace(runtime)
    without(runtime, "/sys")
    add(runtime, "/sys", "/sys", "rbind", "nosuid", "noexec", "nodev", "ro")
    name = owned_cgroup.strip("/")
    printed = runtime.shell(f"for g in /sys/fs/cgroup/*/{name}; do mkdir $g/attack && rmdir $g/attack && echo $g; done")
    assert printed.splitlines()
    runtime.config["mounts"][-1]["options"].append("rro")
    refused = runtime.shell(f"for g in /sys/fs/cgroup/*/{name}; do mkdir $g/attack 2>/dev/null && echo $g; done; true")
    assert refused == ""
