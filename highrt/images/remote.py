"""What a registry has, for a person to see and to delete; nothing of it comes here."""

import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from highrt.images import referrers
from highrt.images.errors import InvalidImage
from highrt.images.model import Auth, is_digest
from highrt.images.reference import Reference, parse, parse_registry, parse_repository

if TYPE_CHECKING:
    from highrt.images.registry import Page, Registry, Repository

_NAME = re.compile(r"[\w./-]{1,255}", re.ASCII)


async def tags(registry: "Registry", repository: str, auth: Auth | None) -> AsyncIterator[list[str]]:
    """The tags of a repository, page by page. Raises InvalidReference, InvalidImage and the registry's errors."""
    async for page in registry.repository(parse_repository(repository), auth).tags():
        yield _names(page, "tags", repository)


async def repositories(registry: "Registry", host: str, auth: Auth | None) -> AsyncIterator[list[str]]:
    """The repositories of a registry, page by page. Raises as `tags` does."""
    async for page in registry.catalog(parse_registry(host), auth or Auth()):
        yield _names(page, "repositories", host)


async def referrers_of(
    registry: "Registry", reference: str, artifact_type: str, auth: Auth | None
) -> AsyncIterator[referrers.Referrer]:
    """The manifests whose subject is the one that a reference names. Raises as `tags` does, and ImageNotFound."""
    name = parse(reference)
    repository = registry.repository(name, auth)
    async for referrer in referrers.referrers(repository, await _digest(repository, name), artifact_type):
        yield referrer


async def delete(registry: "Registry", reference: str, auth: Auth | None) -> Reference:
    """Deletes the manifest that a reference names, with all of its tags. Returns its name by digest.

    Raises InvalidReference, ImageNotFound, RegistryForbids and the registry's errors.
    """
    name = parse(reference)
    repository = registry.repository(name, auth)
    digest = await _digest(repository, name)
    try:
        manifest = await repository.manifest(digest, own=True)
    except InvalidImage:
        manifest = None  # also what nobody can use can be deleted
    await repository.delete_manifest(digest)
    if manifest:
        await referrers.forget(repository, manifest)
    return name.by_digest(digest)


async def _digest(repository: "Repository", name: Reference) -> str:
    """What a reference stands for in the registry now."""
    if name.digest:
        return name.digest
    said = await repository.look(name.target, own=True)
    return said if is_digest(said) else (await repository.manifest(name.target, own=True)).descriptor.digest


def _names(page: "Page", key: str, what: str) -> list[str]:
    """A page's list, which is null where it is empty. What is no name could be a terminal's commands, and is not shown."""
    found = page.document.get(key) or []
    if not isinstance(found, list) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in found):
        raise InvalidImage(f"{what}: the registry sends {key} that are none")
    return found
