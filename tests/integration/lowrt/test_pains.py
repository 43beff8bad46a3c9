"""What has hurt users of container runtimes for years, each a test."""

import subprocess
from pathlib import Path
from typing import Any

from tests.interop.lowrt.conftest import shared_mount


def test_the_hosts_mounts_survive_a_container_whose_root_propagates(runtime: Any, tmp_path: Path) -> None:
    """The old root is let go of inside the container: where it is shared, the host must not lose its mounts by that."""
    with shared_mount(tmp_path / "outer") as outer:
        (outer / "inner").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "inner", outer / "inner"], check=True)
        (outer / "inner/file").touch()
        runtime.config["linux"]["rootfsPropagation"] = "shared"
        runtime.shell("true")
        assert (outer / "inner/file").exists()
