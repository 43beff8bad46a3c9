"""What resources the API server has now, for controllers that work on all of them."""

from dataclasses import dataclass

from strata.kubeclient.client import Client
from strata.kubeclient.resources import Resource


@dataclass(frozen=True)
class Discovered:
    resource: Resource
    verbs: frozenset[str]


async def resources(client: Client) -> list[Discovered]:
    """The resources of each group's preferred version, without subresources. Raises ApiError."""
    versions = [("", "v1")]
    for group in (await client.request("GET", "/apis")).get("groups") or ():
        versions.append((group["name"], group["preferredVersion"]["version"]))
    found = []
    for group, version in versions:
        path = f"/apis/{group}/{version}" if group else f"/api/{version}"
        for listed in (await client.request("GET", path)).get("resources") or ():
            if "/" not in listed["name"]:
                resource = Resource(group, version, listed["name"], listed["kind"], listed["namespaced"])
                found.append(Discovered(resource, frozenset(listed.get("verbs") or ())))
    return found
