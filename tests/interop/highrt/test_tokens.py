"""A registry with a token server, as public ones have: log in, pull and push with a daemon; what is refused or runs out."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from aiohttp import web

from tests.integration.highrt.conftest import IMAGE, Daemon
from tests.interop.highrt.test_login import PASSWORD, Home
from tests.interop.images.conftest import DockerRegistry, Proxy, TokenServer, serving


@dataclass
class Guarded:
    """A person's home, and a registry that wants the tokens of a server."""

    home: Home
    proxy: Proxy
    tokens: TokenServer

    async def __call__(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """A command's output, or where it may fail what it complains of."""
        done = await asyncio.to_thread(self.home, *arguments, stdin=stdin, check=check)
        return done.stdout.strip() if check else done.stderr

    async def log_in(self, password: str = PASSWORD, *, check: bool = True) -> str:
        return await self("login", "-u", "ann", "--password-stdin", self.home.registry, stdin=password, check=check)

    async def push(self, name: str = "team/hello:1", *, check: bool = True) -> str:
        return await self("push", "-q", IMAGE, f"{self.home.registry}/{name}", check=check)


@pytest.fixture
async def guarded(daemon: Daemon, registry: DockerRegistry, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    async with serving(registry.address) as proxy:
        tokens = TokenServer(user="ann", password=PASSWORD)
        proxy.rules.append(tokens.rule)
        yield Guarded(Home(tmp_path_factory.mktemp("home"), daemon, proxy.address), proxy, tokens)
    assert PASSWORD not in daemon.log()
    assert not [token for token in tokens.tokens if token in daemon.log()]


async def test_who_has_logged_in_pushes_pulls_and_looks(guarded: Guarded) -> None:
    assert "401" in await guarded.push(check=False)
    assert "token server" in await guarded.log_in("wrong", check=False)
    assert not guarded.home.config.exists()
    assert "Login Succeeded" in await guarded.log_in()
    assert (await guarded.push()).startswith("sha256:")
    await guarded("pull", "-q", f"{guarded.home.registry}/team/hello:1")
    assert await guarded("registry", "tags", f"{guarded.home.registry}/team/hello") == "1"
    assert await guarded("registry", "catalog", guarded.home.registry) == "team/hello"
    scopes = {asked.get("scope") for asked in guarded.tokens.asked}
    assert {"repository:team/hello:pull", "repository:team/hello:pull,push", "registry:catalog:*"} <= scopes
    await guarded("registry", "delete", "-f", f"{guarded.home.registry}/team/hello:1")
    assert "Removed" in await guarded("logout", guarded.home.registry)
    assert "401" in await guarded.push(check=False), "the daemon keeps tokens for those only who have the credentials"


async def test_credentials_that_are_no_good_any_more_are_told(guarded: Guarded) -> None:
    await guarded.log_in()
    await guarded.push()
    guarded.tokens.password = "another one"
    guarded.tokens.revoked |= set(guarded.tokens.tokens)
    assert "token server" in (said := await guarded.push("team/other:1", check=False))
    assert guarded.home.registry in said
    assert "401" in said


async def test_a_refresh_token_of_the_file_is_used(guarded: Guarded) -> None:
    guarded.home.config.parent.mkdir()
    user = base64.b64encode(b"<token>:").decode()
    entry = f'{{"auth": "{user}", "identitytoken": "{guarded.tokens.refresh}"}}'
    guarded.home.config.write_text(f'{{"auths": {{"{guarded.home.registry}": {entry}}}}}')
    assert (await guarded.push()).startswith("sha256:")
    assert {asked["grant_type"] for asked in guarded.tokens.asked} == {"refresh_token"}


@pytest.mark.parametrize("told", [True, False], ids=["as they say", "sooner than they say"])
async def test_tokens_that_run_out_during_a_long_push_are_renewed(guarded: Guarded, told: bool) -> None:
    """Each of an upload's requests takes longer than a token lives."""
    guarded.tokens.life, guarded.tokens.told_life = 1.0, 1 if told else 300
    await guarded.log_in()

    async def slow(request: web.Request) -> None:
        if request.method == "PATCH":
            await asyncio.sleep(1.2)

    guarded.proxy.rules.append(slow)
    began = time.monotonic()
    assert (await guarded.push()).startswith("sha256:")
    assert time.monotonic() - began > 1.2
    assert len([asked for asked in guarded.tokens.asked if "push" in asked.get("scope", "")]) > 1
    assert bool(guarded.tokens.refused_late) is not told, "who is told in time asks in time"
    await guarded("pull", "-q", f"{guarded.home.registry}/team/hello:1")
