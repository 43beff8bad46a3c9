"""A client of registries (distribution-spec v1.1): manifests and blobs, both ways.

On aiohttp, and not on the `oras` library: that one blocks on `requests`, so that every parallel download is a thread, it
keeps a whole blob's retry to itself where a cut download must go on at its last byte, and it would be 12 MB of the daemon's
memory beside the aiohttp that streaming needs anyway.

Each request goes to the hosts of a registry in order (mirrors first). A server's 5xx, 429 and cut connections are tried
again with a back-off; 401 is answered once. Redirects are followed by hand, because an Authorization header must not go to
another host (a registry's storage).
"""

import asyncio
import contextlib
import io
import os
import random
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from highrt.images.auth import Tokens
from highrt.images.content import MAX_DOCUMENT, ContentStore, parse_document
from highrt.images.errors import (
    DigestMismatch,
    ImageError,
    ImageNotFound,
    InvalidImage,
    RegistryForbids,
    RegistryUnauthorized,
    RegistryUnavailable,
)
from highrt.images.hosts import PULL, PUSH, RESOLVE, Host, hosts_for, is_loopback
from highrt.images.locks import KeyedLocks
from highrt.images.manifests import Manifest, checked_manifest
from highrt.images.model import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Auth, Descriptor
from highrt.images.reference import Reference
from strata.telemetry import logs

log = logs.get("highrt.registry")
T = TypeVar("T")

_ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, "*/*"))
_TRIES = 5
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.25, 10.0
_REDIRECTS = 10
_REDIRECTED = frozenset({301, 302, 303, 307, 308})
_CHUNK = 1 << 18
_DOCUMENT_SECONDS = 60
"""How long a manifest may take to arrive: it is small."""
_SLOW_SECONDS, _SLOWEST_BYTES = 60, 1 << 16
"""A download that brings less in so long is given up, and an upload of which less is taken: they would keep a place from
others for days."""
_ANSWER_SECONDS = 120
"""How long the head of an answer may take, the connection included."""
_CUT = (aiohttp.ClientError, TimeoutError, ConnectionError)
_READ, _WRITE, _DELETE = "pull", "pull,push", "pull,delete"
"""What is done in a repository, as scopes of tokens say it."""
_CATALOG = "registry:catalog:*"
_MOST_PAGES = 10_000

Count = Callable[[int], None]
"""Called with how many bytes of a blob are there."""


@dataclass(frozen=True)
class Page:
    """A part of a list. header: of its response. following: the path of the next part, "" for none."""

    document: dict[str, Any]
    header: Mapping[str, str]
    following: str


class _Again(Exception):
    """The request may be repeated. wait_seconds: what the server asked for."""

    def __init__(self, text: str, wait_seconds: float | None = None) -> None:
        super().__init__(text)
        self.wait_seconds = wait_seconds


class Registry:
    """One client for all registries; `registry_config` is containerd's certs.d folder."""

    def __init__(self, registry_config: Path | None = None) -> None:
        self._config = registry_config
        self._session: aiohttp.ClientSession | None = None
        self._tokens = Tokens()
        self.lists = KeyedLocks()
        self._challenges: dict[str, str] = {}
        self._plain: set[str] = set()
        self._contexts: dict[Host, ssl.SSLContext] = {}

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def repository(self, reference: Reference, auth: Auth | None = None) -> "Repository":
        """The repository that a reference names, seen with some credentials. Raises InvalidConfiguration."""
        return Repository(self, reference, hosts_for(reference.registry, self._config), auth or Auth())

    async def check(self, registry: str, auth: Auth) -> None:
        """Whether a registry takes these credentials (its `/v2/`, distribution-spec end-1). Raises RegistryUnauthorized,
        RegistryUnavailable, InvalidConfiguration."""
        host = self._own(registry)
        try:
            async with self.send(host, "GET", "/", auth=auth, scope=""):
                pass
        except (_Again, *_CUT) as error:
            raise RegistryUnavailable(f"{registry}: {_cause(error)}") from None

    def catalog(self, registry: str, auth: Auth) -> AsyncIterator[Page]:
        """The pages of a registry's list of repositories (Docker Registry HTTP API V2, "Listing Repositories"). Raises as
        `pages` does, and InvalidConfiguration."""
        return self.pages(self._own(registry), "/_catalog", auth=auth, scope=_CATALOG, what=f"the repositories of {registry}")

    def _own(self, registry: str) -> Host:
        """Where a registry itself is, and none of its mirrors."""
        hosts = hosts_for(registry, self._config)
        return next((host for host in hosts if host.own), hosts[-1])

    async def pages(
        self, host: Host, path: str, *, auth: Auth, scope: str, what: str, query: Mapping[str, str] | None = None
    ) -> AsyncIterator[Page]:
        """A list that comes in parts, each of which says in a `Link` header where the next one is (RFC 8288).

        Raises ImageNotFound, InvalidImage and the registry's errors.
        """

        async def read(host: Host) -> Page:
            async with self.send(host, "GET", path, auth=auth, scope=scope, query=query) as response:
                document = parse_document(await _read_document(response), f"{what}: the answer of {host.authority}")
                return Page(document, response.headers, _following(response, self._url(host, "")))

        seen: set[str] = set()
        while path:
            seen.add(path)
            page = await _persist(host, read, what)
            yield page
            path, query = page.following, None
            if path in seen or len(seen) == _MOST_PAGES:
                raise RegistryUnavailable(f"{what}: {host.authority} sends page after page without an end")

    async def fetch(self, address: str) -> bytes | None:
        """What an http address has, 4 MiB at most; None where there is nothing. Raises RegistryUnavailable."""
        try:
            async with self.session.get(address, proxy=_proxy(URL(address))) as response:
                if response.status == 404:
                    return None
                if response.status != 200:
                    raise RegistryUnavailable(f"{address} answered {response.status} {response.reason}")
                return await _read_document(response)
        except _CUT as error:
            raise RegistryUnavailable(f"{address}: {_cause(error)}") from None

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, connect=30, sock_connect=15, sock_read=60),
                # A blob's bytes are its digest's: nothing may be packed or unpacked on the way.
                headers={"User-Agent": "highrt/0.1", "Accept-Encoding": "identity"},
                auto_decompress=False,
            )
        return self._session

    def tls(self, host: Host) -> ssl.SSLContext:
        if host not in self._contexts:
            self._contexts[host] = host.tls()
        return self._contexts[host]

    @contextlib.asynccontextmanager
    async def send(
        self,
        host: Host,
        method: str,
        path: str,
        *,
        auth: Auth,
        scope: str,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, its challenge answered and its redirects followed.

        path: below the host's URL, or a whole URL that the registry gave. body: makes the body, as it may be sent twice.
        Raises _Again where another try may help, ImageNotFound, RegistryUnauthorized, RegistryUnavailable.
        """
        start = self._url(host, path)
        # An upload may go on at another host, which the credentials are not for.
        home = self._url(host, "")
        is_home = start.raw_authority == home.raw_authority and (start.scheme == home.scheme or host.try_http)
        if query:
            start = start.update_query(query)
        denial = ""
        # Without an answer to a challenge, with one, and with a new token where an old one is no good any more.
        for attempt in range(3):
            authorization = await self._authorization(host, auth, scope, attempt) if is_home else None
            async with self._follow(host, method, start, {**host.header, **(headers or {})}, body, authorization) as response:
                if response.status != 401 or not is_home or response.url.raw_authority != start.raw_authority:
                    await _check(response, host)
                    yield response
                    return
                start = start.with_scheme(response.url.scheme)  # it may have been https that was not answered
                self._challenges[host.url] = ", ".join(response.headers.getall("WWW-Authenticate", []))
                denial = await _message(response)
        why = "refused the credentials" if _for_host(auth, host) else "wants credentials, and none were given"
        raise RegistryUnauthorized(f"{host.authority} {why}{denial}")

    @contextlib.asynccontextmanager
    async def _follow(
        self,
        host: Host,
        method: str,
        start: URL,
        headers: dict[str, str],
        body: Callable[[], Any] | None,
        authorization: str | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response at the end of all redirects. The Authorization header goes to the first host only."""
        url, home = start, start.origin()
        for _ in range(_REDIRECTS):
            sent = {**headers, "Authorization": authorization} if authorization and url.origin() == home else headers
            try:
                response = await self._request(host, method, url, sent, body)
            except aiohttp.ClientConnectionError as error:
                self._plain.discard(host.authority)  # what answers there next time may speak TLS
                raise _Again(_cause(error)) from error
            if url == start:
                home = response.url.origin()
            async with response:
                if response.status not in _REDIRECTED or "Location" not in response.headers:
                    yield response
                    return
                url = _target(response)
        raise RegistryUnavailable(f"{host.authority} redirects more than {_REDIRECTS} times")

    async def _request(
        self, host: Host, method: str, url: URL, headers: dict[str, str], body: Callable[[], Any] | None
    ) -> aiohttp.ClientResponse:
        """One exchange. A registry on loopback that does not answer TLS is asked without, and this is remembered."""

        async def exchange(url: URL) -> aiohttp.ClientResponse:
            tls = self.tls(host) if url.scheme == "https" else False
            data = body() if body else None
            async with asyncio.timeout(None if body else _ANSWER_SECONDS):  # a body has a limit that moves
                return await self.session.request(
                    method, url, headers=headers, data=data, ssl=tls, proxy=_proxy(url), allow_redirects=False
                )

        try:
            return await exchange(url)
        except aiohttp.ClientConnectorCertificateError:
            raise
        except aiohttp.ClientConnectionError:
            if not host.try_http or url.scheme != "https" or url.raw_authority != host.authority:
                raise
        response = await exchange(url.with_scheme("http"))
        self._plain.add(host.authority)
        return response

    def _url(self, host: Host, path: str) -> URL:
        base = host.url
        if host.authority in self._plain:
            base = base.replace("https://", "http://", 1)
        if "://" in path:
            return URL(path, encoded=True)
        return URL(f"{base}{path}", encoded=True)

    async def _authorization(self, host: Host, auth: Auth, scope: str, attempt: int) -> str | None:
        """What answers the host's last challenge. Before the host has asked, being unable to answer is no failure yet."""
        header = self._challenges.get(host.url)
        if header is None:
            return None
        meant, tls = _for_host(auth, host), self.tls(host)
        try:
            return await self._tokens.authorization(self.session, header, meant, scope, tls, fresh=attempt > 1)
        except RegistryUnauthorized as error:
            if attempt == 0:
                return None
            raise RegistryUnauthorized(f"{host.authority}: {error}") from None


class Repository:
    """One repository with one person's credentials."""

    def __init__(self, registry: Registry, reference: Reference, hosts: list[Host], auth: Auth) -> None:
        self._registry, self._reference, self._hosts, self._auth = registry, reference, hosts, auth

    # reading

    async def manifest(self, target: str, *, size: int | None = None, own: bool = False) -> Manifest:
        """The manifest or index of a tag or digest, its bytes checked against the digest.

        own: as the registry itself has it, whatever mirrors say. Raises ImageNotFound, DigestMismatch, InvalidImage and the
        registry's errors.
        """

        async def read(host: Host) -> Manifest:
            async with self._send(host, "GET", f"manifests/{target}", headers={"Accept": _ACCEPT}) as response:
                data = await _read_document(response)
                media_type = response.content_type
            return checked_manifest(data, media_type, target if ":" in target else None, str(self._reference), size)

        return await self._try(read, PULL if ":" in target else RESOLVE, str(self._reference), own=own)

    async def look(self, target: str, *, own: bool = False) -> str:
        """Asks whether the registry would give a manifest, by its tag or digest, and which one that is now: its digest, or ""
        where the registry does not say. own: as `manifest` has it. Raises ImageNotFound and the registry's errors."""

        async def look(host: Host) -> str:
            async with self._send(host, "HEAD", f"manifests/{target}", headers={"Accept": _ACCEPT}) as response:
                return response.headers.get("Docker-Content-Digest", "")

        return await self._try(look, PULL if ":" in target else RESOLVE, str(self._reference), own=own)

    async def blob(self, descriptor: Descriptor, content: ContentStore, count: Count) -> None:
        """Downloads a blob into the content store. What an earlier try or a cut connection left is gone on with.

        Raises DigestMismatch (nothing is kept), OSError where it cannot be stored (nothing is kept), ImageNotFound and the
        registry's errors.
        """
        if content.has(descriptor.digest):
            count(descriptor.size)
            return
        try:
            await self._download(descriptor, content, count)
        except OSError:
            # A full disk is not made fuller by what cannot be gone on with.
            content.drop_partial(descriptor.digest)
            raise

    async def _download(self, descriptor: Descriptor, content: ContentStore, count: Count) -> None:
        with content.write(descriptor.digest) as ingest:
            await asyncio.to_thread(ingest.resume)
            if ingest.offset > descriptor.size:
                ingest.restart()
            resumed = ingest.offset > 0

            def anew() -> None:
                ingest.restart()
                count(0)

            async def read(host: Host) -> None:
                if ingest.offset == descriptor.size:
                    return
                headers = {"Range": f"bytes={ingest.offset}-"} if ingest.offset else {}
                async with self._send(host, "GET", f"blobs/{descriptor.digest}", headers=headers) as response:
                    if ingest.offset and not _continues(response, ingest.offset):
                        anew()
                        if response.status == 416:
                            raise _Again("the registry cannot go on with a cut download")
                    pace = _Pace(ingest.offset)
                    async for chunk in response.content.iter_chunked(_CHUNK):
                        if ingest.offset + len(chunk) > descriptor.size:
                            ingest.restart()
                            raise DigestMismatch(
                                f"content {descriptor.digest} was refused: it has more than {descriptor.size} bytes"
                            )
                        ingest.append(chunk)
                        count(ingest.offset)
                        if pace.is_slow(ingest.offset):
                            raise RegistryUnavailable(
                                f"{host.authority} sends too slowly, less than {_SLOWEST_BYTES} bytes"
                                f" in {_SLOW_SECONDS} s: it was left after {ingest.offset} of {descriptor.size} bytes,"
                                f" which the next pull goes on with"
                            )
                if ingest.offset < descriptor.size:
                    raise _Again(f"the connection ended after {ingest.offset} of {descriptor.size} bytes")

            what = f"content {descriptor.digest} of {self._reference}"
            await self._try(read, PULL, what, progress=lambda: ingest.offset)
            if resumed and not ingest.matches(descriptor.size):
                log.info("what an earlier download left was wrong, it is begun anew", digest=descriptor.digest)
                anew()
                await self._try(read, PULL, what, progress=lambda: ingest.offset)
            await asyncio.to_thread(ingest.commit, descriptor.size)

    # writing

    async def has_blob(self, digest: str) -> bool:
        async def look(host: Host) -> bool:
            try:
                async with self._send(host, "HEAD", f"blobs/{digest}", actions=_WRITE):
                    return True
            except ImageNotFound:
                return False

        return await self._try(look, PUSH, str(self._reference))

    async def push_blob(self, descriptor: Descriptor, path: Path, count: Count) -> None:
        """Uploads a blob that the registry does not have: an upload is begun, sent as one PATCH, and ended by a PUT."""
        if await self.has_blob(descriptor.digest):
            count(descriptor.size)
            return

        async def write(host: Host) -> None:
            async with self._send(host, "POST", "blobs/uploads/", actions=_WRITE, headers={"Content-Length": "0"}) as response:
                place = _location(response)
            kind = {"Content-Type": "application/octet-stream", "Content-Length": str(descriptor.size)}
            upload = _Upload(path, count)
            async with (
                upload.timed(host),
                self._send(host, "PATCH", place, actions=_WRITE, headers=kind, body=upload.pieces) as response,
            ):
                place = _location(response)
            query = {"digest": descriptor.digest}
            async with self._send(host, "PUT", place, actions=_WRITE, headers={"Content-Length": "0"}, query=query):
                pass

        await self._try(write, PUSH, f"content {descriptor.digest} to {self._reference}")

    async def push_manifest(self, descriptor: Descriptor, data: bytes, target: str) -> str:
        """Puts a manifest under a tag or its digest, after its blobs. Returns the subject's digest, where the registry says that
        it has noted the manifest as a referrer of it (`OCI-Subject`)."""

        async def write(host: Host) -> str:
            headers = {"Content-Type": descriptor.media_type, "Content-Length": str(len(data))}
            upload = _Upload(data)
            async with (
                upload.timed(host),
                self._send(host, "PUT", f"manifests/{target}", actions=_WRITE, headers=headers, body=upload.pieces) as response,
            ):
                return response.headers.get("OCI-Subject", "")

        return await self._try(write, PUSH, str(self._reference))

    async def delete_manifest(self, digest: str) -> None:
        """Deletes a manifest, and with it all tags that stand for it. Raises ImageNotFound, RegistryForbids where the registry
        lets nobody delete, and the registry's errors."""

        async def delete(host: Host) -> None:
            try:
                async with self._send(host, "DELETE", f"manifests/{digest}", actions=_DELETE):
                    pass
            except RegistryForbids as error:
                raise RegistryForbids(f"{host.authority} lets nobody delete: whoever runs it can allow that ({error})") from None

        await self._try(delete, PUSH, str(self._reference))

    # lists

    def keeping(self, subject: str) -> contextlib.AbstractAsyncContextManager[None]:
        """Around a change of the list of a subject's referrers that clients keep: two at once would lose one's."""
        return self._registry.lists.hold(f"{self._reference.name}@{subject}")

    def tags(self) -> AsyncIterator[Page]:
        """The pages of the list of tags (distribution-spec, end-8a). Raises as `Registry.pages` does."""
        return self._pages("tags/list", f"the tags of {self._reference.name}")

    def referrers(self, digest: str, artifact_type: str) -> AsyncIterator[Page]:
        """The pages of the list of manifests that have a subject (end-12a); each an image index. artifact_type: "" for any; a
        registry need not heed it. Raises ImageNotFound where the registry does not know this list, and as `Registry.pages`."""
        query = {"artifactType": artifact_type} if artifact_type else {}
        return self._pages(f"referrers/{digest}", f"the referrers of {self._reference.name}@{digest}", query)

    def _pages(self, path: str, what: str, query: Mapping[str, str] | None = None) -> AsyncIterator[Page]:
        host = self._with(RESOLVE, own=True)[0]
        name = self._reference.repository
        scope = f"repository:{name}:{_READ}"
        return self._registry.pages(host, f"/{name}/{path}", auth=self._auth, scope=scope, what=what, query=query)

    # each request

    def _with(self, capability: str, *, own: bool) -> list[Host]:
        """The hosts that may be asked for something. own: only the registry itself, where it is one of them. Raises
        RegistryUnavailable where there is none."""
        hosts = [host for host in self._hosts if capability in host.capabilities]
        if not hosts:
            raise RegistryUnavailable(f"{self._reference}: no host of {self._reference.registry} may be asked to {capability}")
        return [host for host in hosts if host.own] or hosts if own else hosts

    @contextlib.asynccontextmanager
    async def _send(
        self,
        host: Host,
        method: str,
        path: str,
        *,
        actions: str = _READ,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        repository = self._reference.repository
        scope = f"repository:{repository}:{actions}"
        if not host.own:
            query = {"ns": self._reference.registry, **(query or {})}
        if "://" not in path:
            path = f"/{repository}/{path}"
        async with self._registry.send(
            host, method, path, auth=self._auth, scope=scope, headers=headers, body=body, query=query
        ) as response:
            yield response

    async def _try(
        self,
        act: Callable[[Host], Awaitable[T]],
        capability: str,
        what: str,
        progress: Callable[[], int] = lambda: 0,
        *,
        own: bool = False,
    ) -> T:
        """Asks one host after the other, each again and again with a back-off while it says that this may help.

        progress: a number that grows while tries bring something; those do not count. own: no mirror is asked.
        """
        *mirrors, last = self._with(capability, own=own or capability == PUSH)
        for host in mirrors:
            try:
                return await _persist(host, act, what, progress)
            except DigestMismatch:
                raise
            except ImageError as error:
                log.info("a mirror failed, the next host is asked", host=host.authority, error=str(error))
        # What the registry itself says is worth more than what a mirror said.
        return await _persist(last, act, what, progress)


async def _persist(host: Host, act: Callable[[Host], Awaitable[T]], what: str, progress: Callable[[], int] = lambda: 0) -> T:
    """Asks a host again and again, with a back-off, while it says that this may help. progress: as `Repository._try` has it."""
    tries, reached = 0, progress()
    while True:
        try:
            return await act(host)
        except (_Again, *_CUT) as error:
            text, asked = _cause(error), getattr(error, "wait_seconds", None)
            # Nobody listens there: a person waits for this answer, and a kubelet comes back by itself.
            patience = 2 if isinstance(error.__cause__, aiohttp.ClientConnectorError) else _TRIES
        except (ImageNotFound, RegistryForbids, RegistryUnauthorized, RegistryUnavailable) as error:
            raise type(error)(f"{what}: {error}") from None
        tries = 1 if progress() > reached else tries + 1
        reached = max(progress(), reached)
        if tries >= patience:
            raise RegistryUnavailable(f"{what}: {host.authority} failed {tries} times, at last: {text}")
        wait = min(_FIRST_WAIT_SECONDS * 2 ** (tries - 1), _LONGEST_WAIT_SECONDS) * random.uniform(0.8, 1.2)
        log.info("the registry is asked again", host=host.authority, error=text, seconds=round(asked or wait, 1))
        await asyncio.sleep(min(asked, _LONGEST_WAIT_SECONDS) if asked is not None else wait)


class _Pace:
    """Watches how fast a download goes. at: the bytes that are there when it begins."""

    def __init__(self, at: int) -> None:
        self._at, self._since = at, time.monotonic()

    def is_slow(self, at: int) -> bool:
        """Whether a whole stretch of time has brought too little."""
        if time.monotonic() - self._since < _SLOW_SECONDS:
            return False
        slow = at - self._at < _SLOWEST_BYTES
        self._at, self._since = at, time.monotonic()
        return slow


class _Upload:
    """What a request has as its body, which a registry has to take at some pace, and then to answer."""

    def __init__(self, source: Path | bytes, count: Count = lambda _: None) -> None:
        self._source, self._count = source, count
        self._limit = asyncio.timeout(None)
        self._is_taken = False

    @contextlib.asynccontextmanager
    async def timed(self, host: Host) -> AsyncIterator[None]:
        """Around the whole exchange. Raises RegistryUnavailable where the body is taken too slowly, TimeoutError where no answer
        follows."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS) as self._limit:
                yield
        except TimeoutError:
            if self._is_taken or not self._limit.expired():
                raise
            raise RegistryUnavailable(
                f"{host.authority} takes what is sent too slowly, less than {_SLOWEST_BYTES} bytes in {_SLOW_SECONDS} s"
            ) from None

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, from its start. Each piece is small enough to have the whole time of the slowest pace for itself."""
        sent, self._is_taken = 0, False
        with io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                for start in range(0, len(chunk), _SLOWEST_BYTES):
                    self._wait(_SLOW_SECONDS)
                    yield chunk[start : start + _SLOWEST_BYTES]
                sent += len(chunk)
                self._count(sent)
        self._is_taken = True
        self._wait(_ANSWER_SECONDS)

    def _wait(self, seconds: float) -> None:
        if not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + seconds)


async def _read_document(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async with asyncio.timeout(_DOCUMENT_SECONDS):
        async for chunk in response.content.iter_chunked(_CHUNK):
            data += chunk
            if len(data) > MAX_DOCUMENT:
                raise InvalidImage(
                    f"{response.url.host} sends a manifest of more than {MAX_DOCUMENT} bytes: no such one is taken"
                )
    return bytes(data)


def _proxy(url: URL) -> str | None:
    """The proxy that the environment names for a URL (HTTPS_PROXY, HTTP_PROXY, NO_PROXY); never one for loopback."""
    if not url.host or is_loopback(url.raw_authority) or urllib.request.proxy_bypass(url.host):
        return None
    return urllib.request.getproxies().get(url.scheme)


def _continues(response: aiohttp.ClientResponse, offset: int) -> bool:
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _location(response: aiohttp.ClientResponse) -> str:
    if "Location" not in response.headers:
        raise RegistryUnavailable(f"{response.url.host} began an upload without saying where it goes")
    return str(_target(response))


def _following(response: aiohttp.ClientResponse, home: URL) -> str:
    """The address of the next page, as a whole URL on the same host wherever the header leads; "" after the last one."""
    try:
        link = response.links.get("next")
        return str(home.origin().join(URL(str(link["url"]), encoded=True).relative())) if link else ""
    except ValueError:
        raise RegistryUnavailable(
            f"{response.url.host} names a next page that has no http address: {response.headers['Link'][:200]!r}"
        ) from None


def _target(response: aiohttp.ClientResponse) -> URL:
    """Where a Location header leads."""
    text = response.headers["Location"]
    try:
        url = response.url.join(URL(text, encoded=True))
        if url.scheme in ("http", "https") and url.host:
            return url
    except ValueError:
        pass
    raise RegistryUnavailable(f"{response.url.host} redirects to {text[:200]!r}, which is no http address")


def _for_host(auth: Auth, host: Host) -> Auth:
    """The credentials, where they are meant for this host."""
    if not auth.server_address:
        return auth if host.own else Auth()
    address = auth.server_address
    wanted = urlsplit(address if "://" in address else f"//{address}").netloc
    same = {wanted, "registry-1.docker.io"} if wanted in ("docker.io", "index.docker.io") else {wanted}
    return auth if host.authority in same else Auth()


def _cause(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "it did not answer in time"
    if type(error) is aiohttp.ClientConnectorError and error.os_error.errno:
        return f"cannot connect to {error.host}:{error.port}: {os.strerror(error.os_error.errno)}"
    return str(error) or type(error).__name__


async def _check(response: aiohttp.ClientResponse, host: Host) -> None:
    """Turns a status that is no success into an error, with what the registry says about it."""
    if response.status < 400 or response.status == 416:
        return
    said = await _message(response)
    text = f"{host.authority} answered {response.status} {response.reason}{said}"
    if response.status == 404:
        raise ImageNotFound(f"not found: {text}")
    if response.status in (401, 403):
        raise RegistryUnauthorized(text)
    if response.status == 405:
        raise RegistryForbids(text)
    if response.status in (408, 429) or response.status >= 500:
        raise _Again(text, _seconds(response.headers.get("Retry-After", "")))
    raise RegistryUnavailable(text)


def _seconds(after: str) -> float | None:
    """What a Retry-After header asks for: a number of seconds or a date (RFC 9110, section 10.2.3); None for neither."""
    if after.isdigit():
        return float(after)
    try:
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return None


async def _message(response: aiohttp.ClientResponse) -> str:
    """The texts of a distribution-spec error body."""
    try:
        data = await response.content.read(1 << 16)
        listed = parse_document(data, "the error").get("errors", [])
        texts = [str(item.get("message") or item.get("code")) for item in listed]
    except (InvalidImage, aiohttp.ClientError, TimeoutError, AttributeError, TypeError):
        return ""
    return f" ({', '.join(texts)})" if texts else ""
