"""The calls about what registries have."""

from collections.abc import AsyncGenerator

from highrt.cri.calls import require, streaming, unary
from highrt.images import remote
from highrt.images.model import Auth
from highrt.person.calls.parts import Parts
from strata.protocols import highrt_pb2 as api


class RegistryCalls(Parts):
    """A part of PersonService."""

    @streaming
    async def RegistryTags(self, request: api.RegistryRequest) -> AsyncGenerator[api.RegistryNames, None]:
        require(request.name, "no repository is named")
        async for names in remote.tags(self._images.registry, request.name, auth(request.credentials)):
            yield api.RegistryNames(names=names)

    @streaming
    async def RegistryCatalog(self, request: api.RegistryRequest) -> AsyncGenerator[api.RegistryNames, None]:
        require(request.name, "no registry is named")
        async for names in remote.repositories(self._images.registry, request.name, auth(request.credentials)):
            yield api.RegistryNames(names=names)

    @streaming
    async def RegistryReferrers(self, request: api.ReferrersRequest) -> AsyncGenerator[api.Referrer, None]:
        require(request.reference, "no image is named")
        found = remote.referrers_of(self._images.registry, request.reference, request.artifact_type, auth(request.credentials))
        async for referrer in found:
            yield api.Referrer(
                digest=referrer.descriptor.digest,
                media_type=referrer.descriptor.media_type,
                artifact_type=referrer.artifact_type,
                bytes=referrer.descriptor.size,
                annotations=referrer.annotations,
            )

    @unary
    async def DeleteFromRegistry(self, request: api.RegistryRequest) -> api.DeletedFromRegistry:
        require(request.name, "no image is named")
        deleted = await remote.delete(self._images.registry, request.name, auth(request.credentials))
        return api.DeletedFromRegistry(name=str(deleted))


def auth(credentials: api.Credentials) -> Auth | None:
    """A person's credentials; None where there are none."""
    found = Auth(username=credentials.username, password=credentials.password, identity_token=credentials.identity_token)
    return found or None
