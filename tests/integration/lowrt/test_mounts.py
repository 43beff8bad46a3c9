"""What a container finds mounted: every option, every kind of source and place, masks, devices, the root itself."""

import json
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from strata.linux import cgroups, mounts
from tests.conftest import Lane

LOWRT = Path(__file__).parents[3] / "lowrt" / "launcher"
MAPPED = 100000
MAPS = [{"containerID": 0, "hostID": MAPPED, "size": 65536}]


@pytest.fixture
def mapped(runtime: Any) -> Iterator[Any]:
    """The runtime with a user namespace, its root file system where that may reach it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        root = Path(folder) / "rootfs"
        (runtime.bundle / "rootfs").rename(root)
        subprocess.run(["chown", "-R", f"{MAPPED}:{MAPPED}", root], check=True)
        (runtime.bundle / "rootfs").symlink_to(root)
        runtime.config["root"]["path"] = str(root)
        linux = runtime.config["linux"]
        linux["namespaces"].append({"type": "user"})
        linux["uidMappings"] = linux["gidMappings"] = MAPS
        yield runtime
        runtime.clean()


@pytest.fixture
def on_host(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a tmpfs on a folder below tmp_path, with the flags of mount(8); all go at the end."""
    made: list[Path] = []

    def mount(name: str, flags: str = "rw") -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        mounts.mount("tmpfs", str(folder), "tmpfs", 0)
        made.append(folder)
        # The flags go to the mount, not to its file system.
        subprocess.run(["mount", "-o", f"remount,bind,{flags}", folder], check=True)
        return folder

    yield mount
    for folder in reversed(made):
        mounts.umount(str(folder), mounts.DETACH)


def add(runtime: Any, destination: str, source: object, *options: str, kind: str = "", **more: Any) -> None:
    entry = {"destination": destination, "source": str(source), "options": list(options), **more}
    runtime.config["mounts"].append({**entry, "type": kind} if kind else entry)


def table(runtime: Any, before: str = "true") -> dict[str, mounts.Mount]:
    """What is mounted in a new container, by target: what is on top of others counts."""
    return {mount.target: mount for mount in map(mounts.Mount, runtime.shell(f"{before}; cat /proc/self/mountinfo").splitlines())}


def flags_of(mount: mounts.Mount) -> set[str]:
    return set(mount.options.split(","))


# --- options

# Option → what mountinfo shows for it, on a new tmpfs. "relatime" is the kernel's default.
OF_A_MOUNT = {
    "ro": "ro", "rw": "rw", "nosuid": "nosuid", "nodev": "nodev", "noexec": "noexec", "nosymfollow": "nosymfollow",
    "noatime": "noatime", "nodiratime": "nodiratime",
    "relatime": "relatime", "norelatime": "relatime", "nostrictatime": "relatime", "atime": "relatime",
}  # fmt: skip
OF_A_FILE_SYSTEM = {"sync": "sync", "dirsync": "dirsync", "lazytime": "lazytime"}
WITHOUT_A_TRACE = ("async", "defaults", "dev", "diratime", "exec", "iversion", "noiversion", "loud", "silent", "nolazytime",
                   "nomand", "suid", "symfollow", "strictatime")  # fmt: skip


def test_every_option_of_a_new_file_system(runtime: Any) -> None:
    options = [*OF_A_MOUNT, *OF_A_FILE_SYSTEM, *WITHOUT_A_TRACE]
    assert set(mounts.OPTIONS) - set(options) == {"bind", "rbind", "remount", "mand"}  # the kernel has no mand any more
    for option in options:
        add(runtime, f"/m/{option}", "tmpfs", option, kind="tmpfs")
    found = table(runtime)
    for option, shown in OF_A_MOUNT.items():
        assert shown in flags_of(found[f"/m/{option}"]), option
    for option, shown in OF_A_FILE_SYSTEM.items():
        # lazytime is a flag of the mount in mountinfo, sync and dirsync are the file system's
        mount = found[f"/m/{option}"]
        assert shown in {*flags_of(mount), *mount.super_options.split(",")}, option
    for option in WITHOUT_A_TRACE:
        expected = {"rw"} if option == "strictatime" else {"rw", "relatime"}
        assert flags_of(found[f"/m/{option}"]) == expected, option


@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
def test_every_recursive_option(runtime: Any, on_host: Callable[..., Path], kind: str) -> None:
    volume = on_host("volume", "ro,nosuid,nodev,noexec,nodiratime,noatime,nosymfollow")
    on_host("plain"), on_host("plain/below")
    subprocess.run(["mount", "-o", "remount,bind,rw,nosuid,nodev,noexec,nodiratime,noatime,nosymfollow", volume], check=True)
    on_host("volume/below", "ro,nosuid,nodev,noexec,nodiratime,noatime,nosymfollow")
    on = {"rro": "ro", "rnosuid": "nosuid", "rnodev": "nodev", "rnoexec": "noexec", "rnodiratime": "nodiratime",
          "rnoatime": "noatime", "rnosymfollow": "nosymfollow", "rrelatime": "relatime"}  # fmt: skip
    off = {"rrw": "ro", "rsuid": "nosuid", "rdev": "nodev", "rexec": "noexec", "rdiratime": "nodiratime",
           "rsymfollow": "nosymfollow", "ratime": "noatime", "rnorelatime": "noatime", "rnostrictatime": "noatime",
           "rstrictatime": "relatime"}  # fmt: skip
    assert {*on, *off} == set(mounts.RECURSIVE)
    for option in (*on, *off):
        if kind == "bind":
            add(runtime, f"/m/{option}", on_or_off(option in on, volume), "rbind", option)
        else:
            add(runtime, f"/m/{option}", "tmpfs", option, kind="tmpfs")
    found = table(runtime)
    below = ("", "/below") if kind == "bind" else ("",)
    for option, shown in on.items():
        assert all(shown in flags_of(found[f"/m/{option}{part}"]) for part in below), option
    for option, gone in off.items():
        assert not any(gone in flags_of(found[f"/m/{option}{part}"]) for part in below), option


def on_or_off(on: bool, volume: Path) -> Path:
    """A tree of mounts without any flags, or one with all of them."""
    return volume.parent / "plain" if on else volume


def test_recursive_options_reach_what_ro_does_not(runtime: Any, on_host: Callable[..., Path]) -> None:
    volume = on_host("volume")
    on_host("volume/below")
    add(runtime, "/ro", volume, "rbind", "ro")
    add(runtime, "/rro", volume, "rbind", "ro", "rro")
    add(runtime, "/alone", volume, "bind")
    refused = "; ".join(f"! touch {path} 2>/dev/null" for path in ("/ro/x", "/rro/x", "/rro/below/x"))
    assert runtime.shell(f"touch /ro/below/x; {refused}; ls /alone/below") == ""
    assert (volume / "below/x").exists()


def test_propagation_of_a_mount(runtime: Any, on_host: Callable[..., Path]) -> None:
    volume = on_host("volume")
    below = on_host("volume/below")
    for folder in (volume, below):
        mounts.mount("", str(folder), "", mounts.SHARED)
    for option in mounts.PROPAGATIONS:
        add(runtime, f"/m/{option}", volume, "rbind", option)
        add(runtime, f"/t/{option}", "tmpfs", option, kind="tmpfs")
    found = table(runtime)
    expected = {"shared": "shared", "slave": "master", "private": "", "unbindable": "unbindable"}
    for option in mounts.PROPAGATIONS:
        plain, recursive = option.removeprefix("r"), option.startswith("r")
        kinds = [{field.partition(":")[0] for field in found[f"/m/{option}{part}"].optional} for part in ("", "/below")]
        assert expected[plain] in kinds[0] or not (expected[plain] or kinds[0]), option
        # What is mounted below stays the slave that all of the host's mounts are to a container, if the option is not for all.
        assert (expected[plain] if recursive else "master") in kinds[1] or not (expected[plain] or kinds[1]), option
        of_tmpfs = "".join(found[f"/t/{option}"].optional).partition(":")[0]
        assert of_tmpfs == {"shared": "shared", "unbindable": "unbindable"}.get(plain, ""), option


def test_what_is_mounted_later_passes_as_the_propagation_says(runtime: Any, on_host: Callable[..., Path]) -> None:
    volume = on_host("volume")
    for name in ("host", "container"):
        (volume / name).mkdir()
    mounts.mount("", str(volume), "", mounts.SHARED)
    runtime.config["linux"]["rootfsPropagation"] = "rshared"
    for kind in ("bounding", "effective", "permitted"):
        runtime.config["process"]["capabilities"][kind] = ["CAP_SYS_ADMIN"]
    for option in ("rshared", "rslave", "rprivate"):
        add(runtime, f"/{option}", volume, "rbind", option)
    runtime.start("sleep", "100")
    mounts.mount("tmpfs", str(volume / "host"), "tmpfs", 0)
    try:
        (volume / "host/mark").write_text("")
        seen = runtime.call("exec", runtime.id, "sh", "-c", "cd /; echo */host/mark", check=True).stdout
        assert seen == "rshared/host/mark rslave/host/mark\n"
        script = "mount -t tmpfs x /rslave/container; touch /rslave/container/inside"
        runtime.call("exec", runtime.id, "sh", "-ec", script, check=True)
        assert not os.path.ismount(volume / "container")
        runtime.call("exec", runtime.id, "mount", "-t", "tmpfs", "x", "/rshared/container", check=True)
        assert os.path.ismount(volume / "container")
    finally:
        mounts.umount_below(str(volume / "host"))
        mounts.umount_below(str(volume / "container"))


# --- flags of binds

OLD = "ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow"
FLAGS = [
    # the source's flags, options, expected outside and in a user namespace; None: refused
    (OLD, "bind", set(OLD.split(",")), set(OLD.split(","))),
    (OLD, "bind,dev", {"rw", "noatime", "nodiratime"}, None),
    ("ro", "bind,nosuid", {"rw", "nosuid", "relatime"}, {"ro", "nosuid", "relatime"}),
    ("ro", "bind,rw", {"rw", "relatime"}, None),
    ("rw,nodev,nosymfollow", "bind,ro,symfollow", {"ro", "relatime"}, {"ro", "nodev", "relatime"}),
    ("noexec,noatime", "bind,exec,atime", {"rw", "noatime"}, None),
    ("noatime", "bind,strictatime", {"rw"}, None),
    ("noatime,nodiratime", "bind,norelatime", {"rw", "noatime", "nodiratime"}, {"rw", "noatime", "nodiratime"}),
    ("noatime", "bind,nodiratime,norelatime", {"rw", "nodiratime", "relatime"}, None),
    ("strictatime", "bind,relatime", {"rw", "relatime"}, None),
    ("relatime", "bind,noatime,ro", {"ro", "noatime"}, None),
    ("rw", "bind,remount", {"rw", "relatime"}, {"rw", "relatime"}),
]  # fmt: skip


@pytest.mark.parametrize("in_user_namespace", [False, True])
def test_a_bind_has_the_flags_that_were_asked_for(
    request: pytest.FixtureRequest, on_host: Callable[..., Path], in_user_namespace: bool
) -> None:  # fmt: skip
    """As runc has it; in a user namespace flags that it may not take off stay, unless that contradicts what was asked for."""
    runtime = request.getfixturevalue("mapped" if in_user_namespace else "runtime")
    refused = []
    for index, (flags, options, outside, inside) in enumerate(FLAGS):
        volume = on_host(f"v{index}", flags)
        if (inside if in_user_namespace else outside) is None:
            refused.append((volume, options))
        else:
            add(runtime, f"/m/{index}", volume, *options.split(","))
    found = table(runtime)
    for index, (flags, options, outside, inside) in enumerate(FLAGS):
        expected = inside if in_user_namespace else outside
        assert expected is None or flags_of(found[f"/m/{index}"]) == expected, (flags, options)
    plain = list(runtime.config["mounts"])
    for volume, options in refused:
        runtime.config["mounts"] = list(plain)
        add(runtime, "/refused", volume, *options.split(","))
        done = runtime.run("true")
        assert done.returncode == 1, options
        assert f'error mounting "{volume}" to rootfs at "/refused": failed to set user-requested vfs flags' in done.stderr
        assert "operation not permitted" in done.stderr


def test_binds_have_no_options_of_a_file_system(runtime: Any, tmp_path: Path) -> None:
    add(runtime, "/x", tmp_path, "bind", "size=1m")
    done = runtime.run("true")
    assert done.returncode == 0
    assert "warning: mount to /x: a bind has no options of a file system: " in done.stderr


# --- sources and places


def test_sources_of_every_kind(runtime: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content\n")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    for name in ("file", "link", "fifo", "socket"):
        for options in (["bind"], ["bind", "ro"], ["rbind", "rro"]):
            add(runtime, f"/m/{name}.{len(options)}", tmp_path / name, *options)
    (runtime.bundle / "beside").write_text("relative\n")
    add(runtime, "/m/beside", "beside", "bind")
    add(runtime, "/m/bundle", ".", "bind")
    printed = runtime.shell(
        "cat /m/file.1 /m/link.2 /m/beside; test -p /m/fifo.1; test -p /m/fifo.2; test -S /m/socket.1; test -S /m/socket.2;"
        "test -f /m/bundle/config.json; test ! -L /m/link.1; ! echo x 2>/dev/null >/m/file.2"
    )
    assert printed == "content\ncontent\nrelative\n"
    server.close()


def test_places_of_every_kind(runtime: Any, tmp_path: Path) -> None:
    rootfs = runtime.bundle / "rootfs"
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/mark").write_text("here\n")
    (rootfs / "real").mkdir()
    (rootfs / "absolute").symlink_to("/real")
    (rootfs / "relative").symlink_to("bin/../real")
    (rootfs / "up").symlink_to("../../../real")
    (rootfs / "jump").symlink_to("/nowhere/yet")
    (rootfs / "etc/hosts").symlink_to("/jump/further/hosts")
    places = {
        "relative/place": "/real/place", "a/../../b/./c": "/b/c", "/two//slashes/": "/two/slashes", "/absolute/one": "/real/one",
        "/up/two": "/real/two", "/jump/three": "/nowhere/yet/three", f"{rootfs}/four": "/four",
    }  # fmt: skip
    for destination in places:
        add(runtime, destination, tmp_path / "volume", "bind")
    add(runtime, "/etc/hosts", tmp_path / "volume/mark", "bind")
    found = table(runtime, f"cat /nowhere/yet/further/hosts {' '.join(f'{place}/mark' for place in places.values())} >/dev/null")
    assert {*places.values(), "/nowhere/yet/further/hosts"} <= found.keys()


def test_folders_are_made_as_a_person_would_make_them(runtime: Any) -> None:
    """Mode 0755 whatever the caller's umask is, and with the group of a folder that passes its own on."""
    rootfs = runtime.bundle / "rootfs"
    (rootfs / "setgid").mkdir()
    (rootfs / "setgid").chmod(0o7755)
    os.chown(rootfs / "setgid", 0, 1234)
    (rootfs / "setgid").chmod(0o7755)
    add(runtime, "/setgid/a/b", "tmpfs", kind="tmpfs")
    add(runtime, "/new/file", runtime.bundle / "config.json", "bind")
    runtime.config["process"]["args"] = ["true"]
    runtime.config["process"]["cwd"] = "/new/cwd"
    runtime.write()
    argv = [LOWRT, "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id]
    subprocess.run(argv, check=True, umask=0o077, stdin=subprocess.DEVNULL, timeout=30)
    expected = {"setgid/a": 0o2755, "setgid/a/b": 0o2755, "new": 0o755, "new/cwd": 0o755, "new/file": 0o644}
    assert {name: stat.S_IMODE((rootfs / name).stat().st_mode) for name in expected} == expected
    assert (rootfs / "setgid/a/b").stat().st_gid == 1234


def test_mounts_are_made_in_their_order_and_may_use_each_other(runtime: Any, tmp_path: Path) -> None:
    rootfs = runtime.bundle / "rootfs"
    for name in ("a", "b"):
        (tmp_path / name / "in").mkdir(parents=True)
        (tmp_path / name / "in/file").write_text(name)
    add(runtime, "/mnt", tmp_path / "a", "bind")
    add(runtime, "/mnt/in", tmp_path / "b", "bind")
    add(runtime, "/copy", rootfs / "mnt", "rbind")
    add(runtime, "/mnt/in", tmp_path / "a", "bind")
    assert runtime.shell("cat /copy/in/in/file /mnt/in/in/file") == "ba"


@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
def test_a_mount_over_the_root_is_the_root(runtime: Any, tmp_path: Path, kind: str) -> None:
    other = tmp_path / "other"
    (other / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", other / "bin")
    for name in ("sh", "cat", "ls"):
        (other / "bin" / name).symlink_to("busybox")
    (other / "mark").write_text("other\n")
    if kind == "bind":
        entry = {"destination": "/", "source": str(other), "options": ["bind"]}
    else:
        (runtime.bundle / "rootfs/mark").write_text("copied\n")
        entry = {"destination": "/", "source": "tmpfs", "type": "tmpfs", "options": ["tmpcopyup"]}
    runtime.config["mounts"].insert(0, entry)
    runtime.config["root"]["readonly"] = True
    assert runtime.shell("cat /mark; ! echo x 2>/dev/null >/new") == {"bind": "other\n", "tmpfs": "copied\n"}[kind]
    assert not (runtime.bundle / "rootfs/new").exists()


def test_a_remount_changes_what_is_there(runtime: Any) -> None:
    add(runtime, "/m", "tmpfs", "size=1m", "mode=700", kind="tmpfs")
    add(runtime, "/m", "tmpfs", "remount", "ro", "size=2m", kind="tmpfs")
    found = table(runtime)
    assert "size=2048k" in found["/m"].super_options
    assert "ro" in found["/m"].super_options.split(",")


def test_what_fails_says_what_and_why_as_runc_does(runtime: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (runtime.bundle / "rootfs/folder").mkdir()
    (runtime.bundle / "rootfs/file").write_text("")
    wrong, where = f'error mounting "{tmp_path}', "to rootfs at"
    cases = [
        (("/x", tmp_path / "nosuch", "bind"), "",
         f'{wrong}/nosuch" {where} "/x": open {tmp_path}/nosuch: no such file or directory'),
        (("/folder", tmp_path / "file", "bind"), "",
         f'{wrong}/file" {where} "/folder": mount src={tmp_path}/file, dst=/folder, flags=MS_BIND: not a directory'),
        (("/file", tmp_path, "bind"), "",
         f'{wrong}" {where} "/file": mount src={tmp_path}, dst=/file, flags=MS_BIND: not a directory'),
        (("/x", "none", "ro"), "nosuch", "mount src=none, dst=/x, flags=MS_RDONLY: no such device"),
        (("/new", "tmpfs", "noexec", "nonsense=1"), "tmpfs",
         "mount src=tmpfs, dst=/new, flags=MS_NOEXEC, data=nonsense=1: invalid argument"),
    ]  # fmt: skip
    plain = list(runtime.config["mounts"])
    for (destination, source, *options), kind, text in cases:
        runtime.config["mounts"] = list(plain)
        add(runtime, destination, source, *options, kind=kind)
        done = runtime.run("true")
        assert done.returncode == 1
        assert text in done.stderr


# --- kinds of file systems


def test_tmpfs_has_the_mode_of_its_folder(runtime: Any) -> None:
    (runtime.bundle / "rootfs/old").mkdir()
    (runtime.bundle / "rootfs/old").chmod(0o712)
    add(runtime, "/old", "tmpfs", "ro", kind="tmpfs")
    add(runtime, "/new/one", "tmpfs", kind="tmpfs")
    add(runtime, "/old", "tmpfs", "mode=1500", kind="tmpfs")
    add(runtime, "/m", "tmpfs", "uid=5", "gid=6", "mode=0750", "size=64k", kind="tmpfs")
    found = table(runtime, "mount | grep -q 'on /old .*mode=712'; ls -ldn /old /new/one /m >&2")
    assert "mode=1500" in found["/old"].super_options
    assert "mode=" not in found["/new/one"].super_options
    # Some kernels say how wide their inode numbers are.
    assert found["/m"].super_options.removesuffix(",inode64") == "rw,size=64k,mode=750,uid=5,gid=6"


def test_a_readonly_tmpfs_takes_the_mounts_within_it(runtime: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in it")
    add(runtime, "/m", "tmpfs", "ro", kind="tmpfs")
    add(runtime, "/m/deep/file", tmp_path / "file", "bind")
    for mount in runtime.config["mounts"]:
        if mount["destination"] == "/dev":
            mount["options"].append("ro")
    printed = runtime.shell("cat /m/deep/file; ! touch /m/x 2>/dev/null; ! touch /dev/x 2>/dev/null; echo >/dev/null")
    assert printed == "in it"


def test_tmpcopyup(runtime: Any) -> None:
    source = runtime.bundle / "rootfs/full"
    (source / "folder/empty").mkdir(parents=True)
    source.chmod(0o751)
    os.chown(source, 7, 8)
    (source / "folder").chmod(0o2770)
    (source / "folder/file").write_text("text\n")
    os.chown(source / "folder/file", 5, 6)
    (source / "folder/file").chmod(0o4755)
    os.utime(source / "folder/file", (0, 86400))
    (source / "link").symlink_to("/etc/shadow")
    os.mkfifo(source / "fifo", 0o640)
    os.mknod(source / "node", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    add(runtime, "/full", "tmpfs", "tmpcopyup", "ro", kind="tmpfs")
    lines = runtime.shell(
        "cd /full; cat folder/file; readlink link; busybox stat -c %Y folder/file; ! touch x 2>/dev/null;"
        "busybox stat -c '%n %a %u %g %F' . folder folder/file folder/empty link fifo node"
    ).splitlines()  # fmt: skip
    assert lines == [
        "text", "/etc/shadow", "86400",
        ". 751 7 8 directory", "folder 2770 0 0 directory", "folder/file 4755 5 6 regular file", "folder/empty 755 0 0 directory",
        "link 777 0 0 symbolic link", "fifo 640 0 0 fifo", "node 600 0 0 character special file",
    ]  # fmt: skip


def test_proc_mqueue_and_devpts_take_their_own_options(runtime: Any) -> None:
    for mount in runtime.config["mounts"]:
        if mount["destination"] == "/proc":
            mount["options"] = ["nosuid", "noexec", "nodev", "hidepid=2", "subset=pid"]
    found = table(runtime, "test ! -e /proc/cpuinfo; ls -ld /proc | grep -q dr-xr-xr-x; : >/dev/mqueue/q")
    assert {"nosuid", "nodev", "noexec"} <= flags_of(found["/proc"])
    assert {"hidepid=invisible", "subset=pid"} <= set(found["/proc"].super_options.split(","))
    assert {"gid=5", "mode=620", "ptmxmode=666"} <= set(found["/dev/pts"].super_options.split(","))
    assert found["/dev/mqueue"].fstype == "mqueue"


def test_an_overlay_with_long_paths(runtime: Any, tmp_path: Path) -> None:
    """What mount(2) takes for the file system is longer than what fsconfig(2) would take for an option."""
    deep = tmp_path / ("d" * 200) / ("e" * 200)
    for name in ("lower", "upper", "work"):
        (deep / name).mkdir(parents=True)
    (deep / "lower/mark").write_text("from below\n")
    options = [f"{name}dir={deep}/{name}" for name in ("lower", "upper", "work")]
    add(runtime, "/o", "overlay", *options, "private", kind="overlay")
    assert runtime.shell("cat /o/mark; echo x >/o/new") == "from below\n"
    assert (deep / "upper/new").exists()


# --- cgroups


def set_cgroup_namespace(runtime: Any, wanted: bool) -> None:
    others = [entry for entry in runtime.config["linux"]["namespaces"] if entry["type"] != "cgroup"]
    runtime.config["linux"]["namespaces"] = [*others, {"type": "cgroup"}] if wanted else others


@pytest.mark.parametrize("namespace", [True, False])
@pytest.mark.parametrize("writable", [True, False])
def test_cgroups_are_the_containers_own(runtime: Any, namespace: bool, writable: bool) -> None:
    set_cgroup_namespace(runtime, namespace)
    for mount in runtime.config["mounts"]:
        if writable and mount["type"] == "cgroup":
            mount["options"].remove("ro")
    v2 = cgroups.mode() == "v2"
    # Of v2 the whole tree is shown to who has no namespace of its own, as runc has it.
    group = f"/sys/fs/cgroup{'' if namespace else runtime.cgroup}" if v2 else "/sys/fs/cgroup/pids"
    mkdir = f"mkdir {group}/inside; rmdir {group}/inside"
    found = table(runtime, mkdir if writable else f"! ({mkdir}) 2>/dev/null; grep -qw 1 {group}/cgroup.procs")
    shown = {target: mount for target, mount in found.items() if target.startswith("/sys/fs/cgroup")}
    hierarchies = set() if v2 else {path.name for path in Path("/sys/fs/cgroup").iterdir()}
    assert {os.path.basename(target) for target in shown if target != "/sys/fs/cgroup"} == hierarchies
    for target, mount in shown.items():
        assert ("rw" if writable else "ro") in flags_of(mount), target
        assert {"nosuid", "nodev", "noexec"} <= flags_of(mount)
        assert mount.root == "/" or mount.root == runtime.cgroup


@pytest.mark.parametrize(("namespace", "user"), [(True, False), (False, False), (True, True), (False, True)])
def test_cgroup_v2(request: pytest.FixtureRequest, namespace: bool, user: bool) -> None:
    """On a private mount of the v2 tree, which is all that lowrt sees then."""
    runtime = request.getfixturevalue("mapped" if user else "runtime")
    set_cgroup_namespace(runtime, namespace)
    look = "cat /proc/self/mountinfo; ls /sys/fs/cgroup; ! mkdir /sys/fs/cgroup/x 2>/dev/null"
    runtime.config["process"]["args"] = ["sh", "-ec", look]
    runtime.write()
    lane = 'umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec "$@"'
    command = [LOWRT, "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id]
    argv = ["unshare", "--mount", "sh", "-ec", lane, "sh", *command]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (mount,) = [m for m in map(mounts.Mount, (line for line in lines if " - " in line)) if m.target == "/sys/fs/cgroup"]
    assert (mount.fstype, flags_of(mount)) == ("cgroup2", {"ro", "nosuid", "nodev", "noexec", "relatime"})
    assert "cgroup.procs" in lines
    # Without a namespace of its own the whole tree is shown, as runc has it.
    assert (runtime.cgroup.strip("/") in lines) is not namespace


def test_an_option_that_cgroup_v2_does_not_know_is_refused(runtime: Any, v2_lane: Lane) -> None:
    """It is not left out by a bind in the mount's place, which is for a kernel that grants no mount."""
    runtime.prefix = v2_lane.prefix
    for mount in runtime.config["mounts"]:
        if mount["type"] == "cgroup":
            mount["options"].append("nosuchoption")
    done = runtime.run("true")
    assert done.returncode == 1
    assert "data=nosuchoption: invalid argument" in done.stderr


# --- ID-mapped mounts


@pytest.fixture
def owned(tmp_path: Path) -> Path:
    """A folder on a file system that knows ID maps, whose files belong to 1000:2000 and 0:0."""
    folder = tmp_path / "owned"
    (folder / "below").mkdir(parents=True)
    for name, uid, gid in (("user", 1000, 2000), ("root", 0, 0), ("below/user", 1000, 2000)):
        (folder / name).write_text("")
        os.chown(folder / name, uid, gid)
    return folder


def maps(container: int, host: int, size: int = 65536) -> list[dict[str, int]]:
    return [{"containerID": container, "hostID": host, "size": size}]


def owners(runtime: Any, *paths: str) -> list[str]:
    shown: list[str] = runtime.shell(f"busybox stat -c %u:%g {' '.join(paths)}").split()
    return shown


def test_id_mapped_mounts_without_a_user_namespace(runtime: Any, owned: Path) -> None:
    add(runtime, "/one", owned, "bind", uidMappings=maps(0, 100000), gidMappings=maps(0, 200000))
    add(runtime, "/two", owned, "bind", "idmap", "ro", uidMappings=maps(1000, 5, 1), gidMappings=maps(2000, 6, 1))
    add(runtime, "/plain", owned, "bind")
    shown = owners(runtime, "/one/user", "/one/root", "/two/user", "/two/root", "/plain/user")
    assert shown == ["101000:202000", "100000:200000", "5:6", "65534:65534", "1000:2000"]
    assert "ro" in flags_of(table(runtime)["/two"])


def test_id_mapped_mounts_in_a_user_namespace(mapped: Any, owned: Path) -> None:
    """Also where that may not reach the source: pytest's folders are root's alone."""
    add(mapped, "/given", owned, "bind", "idmap", uidMappings=maps(0, MAPPED), gidMappings=maps(0, MAPPED))
    add(mapped, "/implied", owned, "bind", "idmap")
    add(mapped, "/plain", owned, "bind")
    shown = owners(mapped, "/given/user", "/implied/user", "/implied/root", "/plain/user")
    assert shown == ["1000:2000", "1000:2000", "0:0", "65534:65534"]
    mapped.shell("echo x >/implied/new")
    assert (owned / "new").stat().st_uid == 0


def test_id_maps_for_the_top_or_for_all(runtime: Any, owned: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "below").mkdir(parents=True)
    mounts.mount(str(owned), str(volume / "below"), "", mounts.BIND)
    try:
        given = {"uidMappings": maps(0, 100000), "gidMappings": maps(0, 100000)}
        add(runtime, "/top", volume, "rbind", "idmap", **given)
        add(runtime, "/all", volume, "rbind", "ridmap", **given)
        shown = owners(runtime, "/top", "/top/below/user", "/all", "/all/below/user")
        assert shown == ["100000:100000", "1000:2000", "100000:100000", "101000:102000"]
    finally:
        mounts.umount(str(volume / "below"), mounts.DETACH)


def test_a_joined_user_namespace_gives_its_id_map(mapped: Any, make_runtime: Any, owned: Path) -> None:
    other = make_runtime("other")
    other.config["root"]["path"] = mapped.config["root"]["path"]
    pid = mapped.start("sleep", "100")
    other.config["linux"]["namespaces"].append({"type": "user", "path": f"/proc/{pid}/ns/user"})
    add(other, "/implied", owned, "bind", "idmap")
    assert owners(other, "/implied/user", "/implied/root") == ["1000:2000", "0:0"]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"type": "tmpfs", "options": ["idmap"]}, "id-mapped mounts are only supported for bind-mounts"),
        ({"options": ["bind", "idmap"]}, "id-mapped mounts must have both uid and gid mappings specified"),
        ({"options": ["bind"], "uidMappings": maps(0, 1)}, "id-mapped mounts must have both uid and gid mappings specified"),
        ({"source": "/proc", "options": ["bind"], "uidMappings": maps(0, 1), "gidMappings": maps(0, 1)},
         "failed to set MOUNT_ATTR_IDMAP on /proc: invalid argument (maybe the filesystem used doesn't support"),
        ({"source": "/nosuch", "options": ["bind"], "uidMappings": maps(0, 1), "gidMappings": maps(0, 1)},
         "open /nosuch: no such file or directory"),
    ],
)  # fmt: skip
def test_id_maps_that_cannot_be_are_refused(runtime: Any, entry: dict[str, Any], text: str) -> None:
    runtime.config["mounts"].append({"destination": "/x", "source": "/usr", **entry})
    done = runtime.run("true")
    assert done.returncode == 1
    assert text in done.stderr


# --- devices


def test_devices_of_every_kind(runtime: Any) -> None:
    runtime.config["linux"]["devices"] = [
        {"path": "/dev/c", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 10, "gid": 11},
        {"path": "/dev/u", "type": "u", "major": 1, "minor": 3, "fileMode": 0o020604},
        {"path": "/deep/er/b/", "type": "b", "major": 7, "minor": 0, "fileMode": 0o157},
        {"path": "dev/p", "type": "p", "uid": 3},
        {"path": "/dev/tty", "type": "c", "major": 5, "minor": 0, "fileMode": 0o600, "gid": 5},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
    ]
    printed = runtime.shell(
        "busybox stat -c '%A %u %g %t:%T' /dev/c /dev/u /deep/er/b /dev/p /dev/tty /dev/full /dev/null;"
        "for link in ptmx fd stdin stdout stderr; do readlink /dev/$link; done"
    )
    assert printed.splitlines() == [
        "crw-r----- 10 11 1:5", "crw----r-- 0 0 1:3", "b--xr-xrwx 0 0 7:0", "prw-rw-rw- 3 0 0:0", "crw------- 0 5 5:0",
        "crw-rw-rw- 0 0 1:7", "crw-rw-rw- 0 0 1:3",
        "pts/ptmx", "/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2",
    ]  # fmt: skip


def test_a_node_that_is_there_already(runtime: Any) -> None:
    """One that is the device gets its mode and owner; one that is not is an error, as config-linux says."""
    runtime.config["mounts"] = [mount for mount in runtime.config["mounts"] if not mount["destination"].startswith("/dev")]
    dev = runtime.bundle / "rootfs/dev"
    dev.mkdir()
    os.mknod(dev / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    (dev / "ptmx").write_text("not a link")
    (dev / "stdin").write_text("stays")
    assert runtime.shell("ls -l /dev/null; readlink /dev/ptmx; cat /dev/stdin").split()[0] == "crw-rw-rw-"
    (dev / "zero").unlink()
    os.mknod(dev / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 11))
    done = runtime.run("true")
    assert 'error creating device nodes: "/dev/zero" exists and is not the character device 1:5: file exists' in done.stderr


def test_nothing_is_made_in_a_dev_that_is_somebodys(runtime: Any, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    runtime.config["mounts"] = [mount for mount in runtime.config["mounts"] if not mount["destination"].startswith("/dev")]
    runtime.config["linux"]["devices"] = [{"path": "/dev/own", "type": "c", "major": 1, "minor": 5}]
    add(runtime, "/dev/", tmp_path / "dev", "rbind")
    assert runtime.shell("ls -A /dev") == ""
    assert list((tmp_path / "dev").iterdir()) == []


def test_devices_in_a_user_namespace_are_the_hosts(mapped: Any) -> None:
    mapped.config["linux"]["devices"] = [
        {"path": "/dev/full", "type": "c", "major": 1, "minor": 7},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600},
    ]
    found = table(mapped, "echo >/dev/null; head -c 1 /dev/zero >/dev/null; test -p /dev/pipe; test -c /dev/full")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        assert {"nosuid", "noexec"} <= flags_of(found[f"/dev/{name}"])


def test_a_device_in_a_user_namespace_that_is_not_the_hosts_is_made(mapped: Any) -> None:
    mapped.config["linux"]["devices"] = [
        {"path": "/dev/full", "type": "c", "major": 1, "minor": 5},
        {"path": "/dev/own/blank", "type": "c", "major": 1, "minor": 3, "fileMode": 0o646, "uid": 5, "gid": 6},
    ]
    look = "head -c 1 /dev/full | busybox od -An -tx1; echo >/dev/own/blank; ls -ln /dev/own/blank"
    printed = mapped.shell(look).split()
    assert printed[0] == "00"
    assert (printed[1], printed[3:5]) == ("crw-r--rw-", ["5", "6"])
    assert {"nosuid", "noexec"} <= flags_of(table(mapped, "true")["/dev/own/blank"])


def test_stdio_on_the_null_device_is_the_containers_own(runtime: Any) -> None:
    """The host's would be its root's to change: chmod(2) by /proc/self/fd/0."""
    before = os.stat("/dev/null").st_mode
    printed = runtime.shell("readlink /proc/self/fd/0; chmod 600 /proc/self/fd/0; ls -l /dev/null")
    assert printed.split()[:2] == ["/dev/null", "crw-------"]
    assert os.stat("/dev/null").st_mode == before


# --- masks, read-only paths


def test_masks_cover_files_and_folders(runtime: Any) -> None:
    rootfs = runtime.bundle / "rootfs"
    for name in ("one", "two", "three"):
        (rootfs / name).mkdir()
        (rootfs / name / "secret").write_text("secret")
    (rootfs / "file").write_text("secret")
    (rootfs / "link").symlink_to("/file2")
    (rootfs / "file2").write_text("secret")
    folders, files = ("/one", "/two", "/three"), ("/file", "/file2")
    runtime.config["linux"]["maskedPaths"] = [*folders, "/one", "/file", "//file", "/link", "/nosuch", "/file/nosuch"]
    hidden = "cat /file /link /file2; cd /two; ! touch x 2>/dev/null; ls /one/* /three/* 2>/dev/null || true"
    assert runtime.shell(hidden) == ""
    lines = [line.split() for line in runtime.shell("cat /proc/self/mountinfo").splitlines()]
    shown = [(fields[4], fields[5].split(",")[0]) for fields in lines if fields[4] in (*folders, *files)]
    assert sorted(shown) == sorted((name, "ro") for name in (*folders, *files))
    assert len({fields[2] for fields in lines if fields[4] in folders}) == 1  # one tmpfs serves for all


def test_a_masked_file_is_no_way_to_the_hosts_null_device(runtime: Any) -> None:
    """What covers it can be read and written, but its mode and owner, which are those of the host's device, stay."""
    allowed = ["CAP_FOWNER", "CAP_CHOWN", "CAP_DAC_OVERRIDE"]
    runtime.config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), allowed)
    runtime.config["linux"]["maskedPaths"] = ["/proc/keys", "/proc/timer_list"]
    before = os.stat("/dev/null")
    try:
        for path in ("/proc/keys", "/proc/timer_list"):
            runtime.shell(f"cat {path}; echo x > {path}; ! chmod 667 {path}; ! chown 1:1 {path}; ! touch {path}")
        after = os.stat("/dev/null")
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    finally:
        os.chmod("/dev/null", 0o666)
        os.chown("/dev/null", 0, 0)


def test_readonly_paths_keep_their_other_flags(runtime: Any, on_host: Callable[..., Path]) -> None:
    volume = on_host("volume", "nosuid,nodev")
    (volume / "inside").mkdir()
    add(runtime, "/m", volume, "bind")
    add(runtime, "/m/inside", "tmpfs", "noexec", kind="tmpfs")
    (runtime.bundle / "rootfs/file").write_text("")
    runtime.config["linux"]["readonlyPaths"] = ["/m/inside", "/m", "/file", "/nosuch"]
    found = table(runtime, "! echo x 2>/dev/null >/file; ! touch /m/x 2>/dev/null; ! touch /m/inside/x 2>/dev/null")
    assert flags_of(found["/m/inside"]) == {"ro", "noexec", "relatime"}
    assert flags_of(found["/m"]) == {"ro", "nosuid", "nodev", "relatime"}


# --- the root


def is_on_shared_mount(path: Path) -> bool:
    """As everything is on a machine that systemd has started."""
    mounted = max((m for m in mounts.mountinfo() if path.is_relative_to(m.target)), key=lambda m: len(m.target))
    return any(field.startswith("shared:") for field in mounted.optional)


@pytest.mark.parametrize(
    ("propagation", "shown"),
    [("", ""), ("private", ""), ("rprivate", ""), ("slave", ""), ("rslave", ""), ("shared", "shared"), ("rshared", "shared"),
     ("unbindable", "unbindable"), ("runbindable", "unbindable")],
)  # fmt: skip
@pytest.mark.parametrize("pivot", [True, False])
def test_root_propagation(runtime: Any, propagation: str, shown: str, pivot: bool) -> None:
    if propagation:
        runtime.config["linux"]["rootfsPropagation"] = propagation
    runtime.config["process"]["args"] = ["cat", "/proc/self/mountinfo"]
    runtime.write()
    done = runtime.call("run", *([] if pivot else ["--no-pivot"]), "--bundle", runtime.bundle, runtime.id)
    if not pivot and propagation in ("private", "rprivate"):
        assert "rootfsPropagation of [r]private is not safe without pivot_root" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    root = [mount for mount in map(mounts.Mount, done.stdout.splitlines()) if mount.target == "/"][-1]
    if propagation in ("slave", "rslave") and is_on_shared_mount(runtime.bundle):
        shown = "master"
    assert "".join(root.optional).partition(":")[0] == shown


@pytest.mark.parametrize("propagation", ["", "rslave", "slave", "rprivate", "private", "rshared", "shared"])
def test_a_root_on_a_shared_mount_shows_the_host_nothing(runtime: Any, on_host: Callable[..., Path], propagation: str) -> None:
    """Whatever the container's mounts are, its root and what is mounted in it are its own."""
    shared = on_host("shared")
    mounts.mount("", str(shared), "", mounts.SHARED)
    root = shared / "root"
    subprocess.run(["cp", "-a", runtime.bundle / "rootfs", root], check=True)
    mounts.mount(str(root), str(root), "", mounts.BIND)
    try:
        mounts.mount("", str(root), "", mounts.SHARED)
        for path in (root, shared / "root/../root"):
            runtime.config["root"]["path"] = str(path)
            if propagation:
                runtime.config["linux"]["rootfsPropagation"] = propagation
            runtime.start("sleep", "100")
            assert [m.target for m in mounts.mountinfo() if m.target.startswith(f"{shared}/")] == [str(root)]
            root_mount = next(m for m in mounts.mountinfo(runtime.state()["pid"]) if m.target == "/")
            kinds = {field.partition(":")[0] for field in root_mount.optional}
            assert ("master" in kinds) is (propagation in ("slave", "rslave"))
            runtime.clean()
    finally:
        mounts.umount(str(root), mounts.DETACH)


def test_the_roots_path_may_be_relative_and_a_link(runtime: Any) -> None:
    (runtime.bundle / "rootfs/mark").write_text("this one\n")
    (runtime.bundle / "link").symlink_to("rootfs")
    for path in ("rootfs", "./link", "link/../rootfs/", str(runtime.bundle / "link")):
        runtime.config["root"]["path"] = path
        assert runtime.shell("cat /mark") == "this one\n"


def test_a_readonly_root_and_what_lies_on_it(runtime: Any) -> None:
    runtime.config["root"]["readonly"] = True
    add(runtime, "/new/place", "tmpfs", kind="tmpfs")
    found = table(runtime, "touch /new/place/x; ! touch /new/x 2>/dev/null; ! touch /sys/x 2>/dev/null")
    assert "ro" in flags_of(found["/"])
    assert "ro" in flags_of(found["/sys"])


@pytest.mark.parametrize("pivot", [True, False])
def test_the_hosts_mounts_are_gone(runtime: Any, pivot: bool) -> None:
    runtime.config["process"]["args"] = ["cat", "/proc/self/mountinfo"]
    runtime.write()
    done = runtime.call("run", *([] if pivot else ["--no-pivot"]), "--bundle", runtime.bundle, runtime.id)
    assert done.returncode == 0, done.stderr
    targets = {mount.target for mount in map(mounts.Mount, done.stdout.splitlines())}
    expected = {"/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"}
    extra = {t for t in targets if not t.startswith(("/proc/", "/sys/"))} - expected
    assert extra == set()
    assert os.path.exists("/proc/self")  # the host's own are still there
    assert "/proc" in {mount.target for mount in mounts.mountinfo()}


# --- sysctls


def test_sysctls_with_dots_in_their_parts(runtime: Any) -> None:
    runtime.config["linux"]["sysctl"] = {
        "net/ipv4/conf/lo/forwarding": "1", "net.ipv4.conf.default.forwarding": "1", "kernel.domainname": "example",
    }  # fmt: skip
    printed = runtime.shell(
        "cat /proc/sys/net/ipv4/conf/lo/forwarding /proc/sys/net/ipv4/conf/default/forwarding /proc/sys/kernel/domainname"
    )
    assert printed.split() == ["1", "1", "example"]


def test_sysctls_that_cannot_be_written_fail_by_name(runtime: Any) -> None:
    for name, value, text in (
        ("net.ipv4.nosuch", "1", 'failed to write sysctl net.ipv4.nosuch = "1": no such file or directory'),
        ("kernel.msgmax", "x", 'failed to write sysctl kernel.msgmax = "x": invalid argument'),
    ):
        runtime.config["linux"]["sysctl"] = {name: value}
        assert text in runtime.run("true").stderr


# --- what it costs


def test_a_plain_container_takes_few_system_calls_for_its_file_system(runtime: Any, tmp_path: Path) -> None:
    """A budget, so that it is noticed when it grows: 8 mounts, 10 masked and 5 read-only paths, 6 devices."""
    runtime.config["process"]["args"] = ["true"]
    runtime.write()
    trace = tmp_path / "trace"
    argv = ["strace", "-f", "-o", trace, LOWRT, "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, timeout=60)
    lines = [line.split(None, 1) for line in trace.read_text().splitlines()]
    first = next(pid for pid, call in lines if call.startswith("pivot_root("))
    calls = [call for pid, call in lines if pid == first and not call.startswith("<... ")]  # whose beginning is there already
    begin = next(i for i, call in enumerate(calls) if call.startswith('mount("", "/"'))
    end = next(i for i, call in enumerate(calls) if call.startswith("pivot_root("))
    assert end - begin < 220


def test_the_features_name_every_option(runtime: Any) -> None:
    found = json.loads(runtime.call("features", check=True).stdout)
    assert {*mounts.OPTIONS, *mounts.PROPAGATIONS, *mounts.RECURSIVE} <= set(found["mountOptions"])
