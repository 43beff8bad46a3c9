"""A whole stack, made by scripts/up in network namespaces of its own, and taken away by scripts/down."""

import json
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_for

REPOSITORY = Path(__file__).parents[2]
KUBECTL = os.environ.get("KUBECTL", "kubectl")


@dataclass
class Node:
    """A network namespace with a node of a stack in it."""

    name: str
    arguments: tuple[str, ...] = ()
    output: str = ""
    environ: dict[str, str] = field(default_factory=dict)

    def up(self, *more: str, seconds: float = 300) -> str:
        """Runs scripts/up; fails with all that it printed."""
        done = subprocess.run(
            [REPOSITORY / "scripts/up", "--netns", self.name, *self.arguments, *more],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            env={**os.environ, **self.environ},
        )
        self.output = done.stdout
        assert done.returncode == 0, f"scripts/up --netns {self.name}:\n{done.stdout}"
        return done.stdout

    def down(self) -> None:
        subprocess.run([REPOSITORY / "scripts/down", "--netns", self.name], check=True, stdin=subprocess.DEVNULL, timeout=120)

    def inside(self, *argv: str | Path) -> list[str]:
        """The command line that runs argv in the node's network namespace."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *map(str, argv)]

    def run(self, *argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"check": True, "stdin": subprocess.DEVNULL, "timeout": 60, **options}
        return subprocess.run(self.inside(*argv), text=True, capture_output=True, **options)

    @property
    def state(self) -> Path:
        return Path(f"/var/lib/strata/{self.name}")

    @property
    def runtime(self) -> Path:
        return Path(f"/run/strata/{self.name}")

    @property
    def socket(self) -> str:
        return f"unix://{self.runtime}/highrt/highrt.sock"


@dataclass
class Cluster:
    """The control plane's node, and kubectl as a user types it."""

    node: Node
    kubeconfig: Path

    def kubectl_argv(self, *argv: str) -> list[str]:
        return self.node.inside(KUBECTL, f"--kubeconfig={self.kubeconfig}", *argv)

    def kubectl(self, *argv: str, input: str | None = None, seconds: float = 60) -> str:
        """What kubectl printed; a failure fails the test with both outputs."""
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(self.kubectl_argv(*argv), text=True, capture_output=True, timeout=seconds, **given)
        assert done.returncode == 0, f"kubectl {' '.join(argv)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def get(self, *argv: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", *argv, "-o", "json"))
        return found

    def wait_pod(self, name: str, *, phase: str = "Running", seconds: float = 60) -> dict[str, Any]:
        """The pod, once it has the phase and (when Running) is Ready."""

        def there() -> dict[str, Any] | None:
            pod = self.get("pod", name)
            status = pod.get("status", {})
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))
            return pod if status.get("phase") == phase and (ready or phase != "Running") else None

        return wait_for(there, seconds=seconds, what=f"pod {name} to be {phase}")

    def wait_reason(self, name: str, *reasons: str, seconds: float = 60) -> dict[str, Any]:
        """The first container's waiting or terminated state, once its reason is one of these."""

        def there() -> dict[str, Any] | None:
            for status in self.get("pod", name).get("status", {}).get("containerStatuses", []):
                for state in (status.get("state", {}), status.get("lastState", {})):
                    for kind in ("waiting", "terminated"):
                        if state.get(kind, {}).get("reason") in reasons:
                            found: dict[str, Any] = state[kind]
                            return found
            return None

        return wait_for(there, seconds=seconds, what=f"pod {name} to show {' or '.join(reasons)}")


@pytest.fixture(scope="session")
def names() -> dict[str, str]:
    """Names of this run's namespaces and link."""
    run = uuid.uuid4().hex[:4]
    return {"first": f"t{run}a", "second": f"t{run}b", "link": f"t{run}"}


@pytest.fixture(scope="session")
def spans_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spans")


@pytest.fixture(scope="session")
def cluster(names: dict[str, str], spans_folder: Path) -> Iterator[Cluster]:
    """A stack of one node, joined to a link so that a second node can be added; spans are on."""
    node = Node(
        names["first"],
        arguments=("--link", names["link"]),
        environ={"STRATA_SPANS": str(spans_folder)},
    )
    try:
        output = node.up()
        found = re.findall(r"\S+/admin\.kubeconfig", output)
        assert found, f"scripts/up did not name the kubeconfig:\n{output}"
        yield Cluster(node, Path(found[-1]))
    finally:
        node.down()
