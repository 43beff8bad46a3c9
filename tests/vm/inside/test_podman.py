"""podman as a booted machine has it: with systemd for its cgroups, as root and as a user, and lowrt in runc's place."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.vm.inside.conftest import CGROUPS, BootedRuntime
from tests.vm.inside.user import MANAGER, as_user, login

MIB = 1 << 20
APPLETS = "sh cat cut dd echo false grep head id kill ls mkdir mount ps rm sleep stat touch true wc"
CONFIGURATION = Path("/etc/containers/containers.conf.d/strata.conf")
Done = subprocess.CompletedProcess[str]


def configuration() -> str:
    """What an administrator writes to have another runtime; systemd for cgroups is podman's default."""
    return f"""
[containers]
netns = "none"
[engine]
events_logger = "none"
infra_image = "localhost/pause:1"
runtime = "tested"
[engine.runtimes]
tested = ["{shutil.which(BootedRuntime.program)}"]
"""


class Podman:
    """podman with its own folders and defaults. Calling it runs a command of podman's."""

    def __init__(self, *, rootless: bool) -> None:
        self.rootless = rootless

    def __call__(self, *argv: str, check: bool = True) -> Done:
        command = ["podman", *argv]
        done = subprocess.run(
            as_user(*command) if self.rootless else command,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False, cwd="/tmp",
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def see(self, name: str, template: str) -> str:
        return self("inspect", name, "--format", template).stdout.strip()

    def group(self, name: str) -> Path:
        """The folder of a container's cgroup."""
        return CGROUPS / self.see(name, "{{.State.CgroupPath}}").lstrip("/")

    def unit(self, group: Path) -> dict[str, str]:
        """What systemd says of the container's scope."""
        command = ["systemctl", *(["--user"] if self.rootless else []), "show", group.name]
        shown = subprocess.run(
            as_user(*command) if self.rootless else command, capture_output=True, text=True, check=True, timeout=60
        ).stdout
        return dict(line.partition("=")[::2] for line in shown.splitlines())


def import_images(podman: Podman, folder: Path) -> None:
    root = folder / "image"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in APPLETS.split():
        (root / "bin" / name).symlink_to("busybox")
    for name in ("dev", "etc", "proc", "run", "sys", "tmp"):
        (root / name).mkdir()
    subprocess.run(["tar", "-C", root, "--owner=0", "--group=0", "-cf", folder / "image.tar", "."], check=True)
    podman("import", "--change", "ENV PATH=/bin", f"{folder}/image.tar", "localhost/busybox:1")
    changes = ("--change", 'CMD ["sleep", "100000"]', "--change", "STOPSIGNAL SIGKILL", "--change", "ENV PATH=/bin")
    podman("import", *changes, f"{folder}/image.tar", "localhost/pause:1")


@pytest.fixture(scope="module", params=["root", "user"])
def podman(request: pytest.FixtureRequest) -> Iterator[Podman]:
    podman = Podman(rootless=request.param == "user")
    CONFIGURATION.parent.mkdir(parents=True, exist_ok=True)
    CONFIGURATION.write_text(configuration())
    with tempfile.TemporaryDirectory() as folder, login() if podman.rootless else nullcontext():
        Path(folder).chmod(0o755)
        try:
            import_images(podman, Path(folder))
            yield podman
        finally:
            podman("pod", "rm", "--all", "--force", "--time", "0", check=False)
            podman("rm", "--all", "--force", "--time", "0", check=False)
            podman("system", "reset", "--force")
            podman("system", "migrate", check=False)  # ends the process that holds a user's namespaces
            CONFIGURATION.unlink()


@pytest.fixture
def one(podman: Podman) -> Iterator[str]:
    """A container that runs, with limits."""
    limits = ("--memory", "50m", "--memory-swap", "50m", "--pids-limit", "20", "--cpus", "0.5")
    podman("run", "--detach", "--name", "one", *limits, "busybox:1", "sleep", "1000")
    yield "one"
    podman("rm", "--force", "--time", "0", "one")


def test_run_gives_output_and_status(podman: Podman) -> None:
    done = podman("run", "--rm", "busybox:1", "sh", "-c", "echo out; id -u; exit 4", check=False)
    assert (done.returncode, done.stdout) == (4, "out\n0\n"), done.stderr


def test_a_container_is_a_scope_of_systemd_with_its_limits(podman: Podman, one: str) -> None:
    group = podman.group(one)
    parent = MANAGER / "user.slice" if podman.rootless else CGROUPS / "machine.slice"
    assert parent in group.parents
    scope = next(folder for folder in (group, *group.parents) if folder.name.endswith(".scope"))
    unit = podman.unit(scope)
    assert (unit["ActiveState"], unit["Delegate"]) == ("active", "yes")
    assert (unit["MemoryMax"], unit["TasksMax"], unit["CPUQuotaPerSecUSec"]) == (str(50 * MIB), "20", "500ms")
    assert (scope / "memory.max").read_text() == f"{50 * MIB}\n"
    assert (scope / "pids.max").read_text() == "20\n"
    podman("update", "--memory", "60m", "--memory-swap", "60m", one)
    assert (scope / "memory.max").read_text() == f"{60 * MIB}\n"
    assert podman.unit(scope)["MemoryMax"] == str(60 * MIB)
    podman("rm", "--force", "--time", "0", one)
    wait_for(lambda: not scope.exists(), what="the scope to go")


def test_a_container_is_entered_listed_paused_and_stopped(podman: Podman, one: str) -> None:
    assert podman("exec", one, "sh", "-c", "echo $((6 * 7))").stdout == "42\n"
    missing = podman("exec", one, "nosuch", check=False)
    assert missing.returncode == 127
    assert "executable file not found in $PATH" in missing.stderr
    assert "sleep 1000" in podman("top", one, "args").stdout
    assert podman("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", one).stdout == "one 1\n"
    podman("pause", one)
    assert podman.see(one, "{{.State.Status}}") == "paused"
    podman("unpause", one)
    podman("stop", "--time", "0", one)
    assert podman.see(one, "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"


def test_a_container_that_takes_too_much_memory_is_killed(podman: Podman) -> None:
    limits = ("--memory", "30m", "--memory-swap", "30m")
    eat = ("dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
    assert podman("run", "--rm", *limits, "busybox:1", *eat, check=False).returncode == 137


def test_a_health_check_is_run_by_systemds_timer(podman: Podman) -> None:
    health = ("--health-cmd", "test -e /tmp/well", "--health-interval", "1s", "--health-retries", "1")
    podman("run", "--detach", "--name", "ill", *health, "busybox:1", "sleep", "1000")
    try:
        podman("exec", "ill", "touch", "/tmp/well")
        state = "{{.State.Health.Status}}"
        wait_for(lambda: podman.see("ill", state) == "healthy", seconds=60, what="the container to be well")
    finally:
        podman("rm", "--force", "--time", "0", "ill")


def test_a_pod_from_a_kubernetes_file(podman: Podman, open_folder: Path) -> None:
    container = {
        "name": "c", "image": "localhost/busybox:1", "command": ["sleep", "1000"],
        "resources": {"limits": {"memory": "40Mi", "cpu": "500m"}},
    }  # fmt: skip
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kube"}, "spec": {"containers": [container]}}
    file = open_folder / "pod.json"
    file.write_text(json.dumps(pod))
    podman("play", "kube", "--network", "none", str(file))  # a network would leave tables of nftables behind
    try:
        assert podman.see("kube-c", "{{.State.Status}}") == "running"
        assert podman("exec", "kube-c", "echo", "inside").stdout == "inside\n"
        group = podman.group("kube-c")
        scope = next(folder for folder in (group, *group.parents) if folder.name.endswith(".scope"))
        assert (scope / "memory.max").read_text() == f"{40 * MIB}\n"
        assert "libpod_pod_" in scope.parent.name
    finally:
        podman("pod", "rm", "--force", "--time", "0", "kube")
    wait_for(lambda: not scope.exists(), what="the scope to go")


@pytest.fixture
def whole_system(open_folder: Path) -> Iterator[Path]:
    """This machine's own files, over which a container can write. Not what tests have left in /tmp: podman has it copied up."""
    subprocess.run(["mount", "-t", "tmpfs", "layers", open_folder], check=True)
    for name in ("upper/tmp", "work", "root"):
        (open_folder / name).mkdir(parents=True)
    os.setxattr(open_folder / "upper/tmp", "trusted.overlay.opaque", b"y")
    layers = f"lowerdir=/,upperdir={open_folder}/upper,workdir={open_folder}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", open_folder / "root"], check=True)
    wants = open_folder / "root/etc/systemd/system/multi-user.target.wants"
    (wants / "strata-agent.service").unlink()
    try:
        yield open_folder / "root"
    finally:
        subprocess.run(["umount", open_folder / "root"], check=True)
        subprocess.run(["umount", open_folder], check=True)


@pytest.mark.parametrize("podman", ["root"], indirect=True)
def test_a_whole_system_runs_inside(podman: Podman, whole_system: Path) -> None:
    """systemd as a container's first process: a writable cgroup tree, in which it makes groups of its own (youki 3437)."""
    podman("run", "--detach", "--name", "system", "--systemd", "always", "--rootfs", str(whole_system), "/sbin/init")
    try:

        def state() -> str:
            return podman("exec", "system", "systemctl", "is-system-running", check=False).stdout.strip()

        wait_for(lambda: state() in ("running", "degraded"), seconds=120, what="the system inside to have started")
        assert podman("exec", "system", "cat", "/proc/1/comm").stdout == "systemd\n"
        assert "init.scope" in podman("exec", "system", "cat", "/proc/1/cgroup").stdout
    finally:
        podman("rm", "--force", "--time", "0", "system")
