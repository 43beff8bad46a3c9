"""`highrt login` and `logout` at a real registry with passwords; credentials are shared with podman, and kept by helpers."""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.highrt.conftest import IMAGE, Daemon
from tests.interop.images.conftest import DockerRegistry
from tests.interop.images.test_registry import bcrypt

PASSWORD = "a pass:word"
HELPER = """#!/bin/sh
# Keeps secrets in a file, by docker-credential-helpers' protocol.
kept=$(dirname "$0")/kept
case $1 in
store) cat > "$kept" ;;
get) test -e "$kept" && cat "$kept" || { echo "credentials not found in native keychain"; exit 1; } ;;
erase) rm -f "$kept" ;;
esac
"""


@dataclass
class Home:
    """A person's home folder, and the registry that they log in to."""

    folder: Path
    daemon: Daemon
    registry: str

    @property
    def config(self) -> Path:
        return self.folder / ".docker/config.json"

    def __call__(self, *arguments: str, stdin: str = "", check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "HOME": str(self.folder),
            "DOCKER_CONFIG": "",
            "XDG_RUNTIME_DIR": str(self.folder),
            **environ,
        }
        done = subprocess.run(
            self.daemon.argv(*arguments), input=stdin, capture_output=True, text=True, env=environment, timeout=60, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        return done

    def log_in(self, password: str = PASSWORD, *, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        arguments = ("login", "-u", "ann", "--password-stdin", self.registry)
        return self(*arguments, stdin=f"{password}\n", check=check, **environ)

    def push(self, *, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        return self("push", "-q", IMAGE, f"{self.registry}/team/hello:1", check=check, **environ)


@pytest.fixture
def home(daemon: Daemon, tmp_path: Path) -> Iterator[Home]:
    (tmp_path / "htpasswd").write_text(f"ann:{bcrypt(PASSWORD)}\n")
    folder = tmp_path / "registry"
    folder.mkdir()
    locked = DockerRegistry(folder, auth=f"auth: {{htpasswd: {{realm: here, path: {tmp_path}/htpasswd}}}}\n")
    locked.start()
    yield Home(tmp_path, daemon, locked.address)
    locked.stop()
    assert PASSWORD not in daemon.log()


def test_only_who_has_logged_in_gets_in(home: Home) -> None:
    assert "none were given" in home.push(check=False).stderr
    refused = home.log_in("wrong", check=False)
    assert "refused the credentials" in refused.stderr
    assert not home.config.exists()
    assert "Login Succeeded" in home.log_in().stdout
    assert stat.S_IMODE(home.config.stat().st_mode) == 0o600
    assert home.push().stdout.startswith("sha256:")
    assert "Removed" in home("logout", home.registry).stdout
    assert "none were given" in home.push(check=False).stderr
    assert "not logged in" in home("logout", home.registry, check=False).stderr


def test_what_else_is_in_the_file_stays(home: Home) -> None:
    home.config.parent.mkdir()
    home.config.write_text('{"detachKeys": "ctrl-a", "auths": {"other.test": {"auth": "YTpi"}}}')
    home.log_in()
    home("logout", home.registry)
    assert json.loads(home.config.read_text()) == {"detachKeys": "ctrl-a", "auths": {"other.test": {"auth": "YTpi"}}}
    home.config.write_text("{")
    assert "cannot read" in home.log_in(check=False).stderr
    assert home.config.read_text() == "{"


def test_podman_and_highrt_share_a_login(home: Home) -> None:
    file = str(home.folder / "auth.json")
    argv = ["podman", "login", "--tls-verify=false", "--authfile", file, "-u", "ann", "--password-stdin", home.registry]
    subprocess.run(argv, input=PASSWORD, text=True, check=True, capture_output=True)
    assert home.push(REGISTRY_AUTH_FILE=file).stdout.startswith("sha256:")
    home("logout", home.registry, REGISTRY_AUTH_FILE=file)
    home.log_in(REGISTRY_AUTH_FILE=file)
    shown = subprocess.run(
        ["podman", "login", "--get-login", "--authfile", file, home.registry], capture_output=True, text=True, check=True
    )
    assert shown.stdout == "ann\n"
    assert not home.config.exists()


def test_a_credential_helper_keeps_the_secret(home: Home) -> None:
    (home.folder / "bin").mkdir()
    helper = home.folder / "bin/docker-credential-test"
    helper.write_text(HELPER)
    helper.chmod(0o755)
    home.config.parent.mkdir()
    home.config.write_text(json.dumps({"credHelpers": {home.registry: "test"}}))
    assert "is not on the PATH" in home.log_in(check=False).stderr
    path = f"{helper.parent}:{os.environ['PATH']}"
    assert "none were given" in home.push(check=False, PATH=path).stderr
    home.log_in(PATH=path)
    assert json.loads((helper.parent / "kept").read_text())["Username"] == "ann"
    assert "auths" not in json.loads(home.config.read_text())
    assert home.push(PATH=path).stdout.startswith("sha256:")
    home("logout", home.registry, PATH=path)
    assert not (helper.parent / "kept").exists()
    helper.write_text("#!/bin/sh\necho broken; exit 3\n")
    assert "failed (get, status 3)" in home.push(check=False, PATH=path).stderr


def test_what_makes_no_sense_is_refused(home: Home) -> None:
    assert "no registry" in home("login", "-u", "a", "-p", "b", f"{home.registry}/team/app", check=False).stderr
    assert "not both" in home("login", "-u", "a", "-p", "b", "--password-stdin", home.registry, check=False).stderr
    assert "cannot connect" in home("login", "-u", "a", "-p", "b", "127.0.0.1:1", check=False).stderr
