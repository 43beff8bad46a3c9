"""What the server says it can do: /version, /api, /apis, and the resources of each group, in both forms."""

from typing import Any

from controlplane.apiserver.resources import Registry, Resource

VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.0+strata",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "cpython",
    "platform": "linux/amd64",
}

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


class Discovery:
    """The discovery documents, made once from the registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._aggregated = {True: self._groups_v2(core=True), False: self._groups_v2(core=False)}

    def document(self, path: str, accept: str) -> tuple[dict[str, Any], str] | None:
        """The document at a path and its content type; None where there is none."""
        parts = path.strip("/").split("/")
        aggregated = "g=apidiscovery.k8s.io" in accept and "v=v2" in accept
        plain = "application/json"
        match parts:
            case ["version"]:
                return VERSION, plain
            case ["api"]:
                if aggregated:
                    return self._aggregated[True], AGGREGATED
                addresses = [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}]
                return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses}, plain
            case ["apis"]:
                if aggregated:
                    return self._aggregated[False], AGGREGATED
                groups = [self._group(group) for group in self._registry.groups() if group]
                return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}, plain
            case ["apis", group] if group in self._registry.groups():
                return {"kind": "APIGroup", "apiVersion": "v1", **self._group(group)}, plain
            case ["api", version] if version in self._registry.groups()[""]:
                return self._resources("", version), plain
            case ["apis", group, version] if version in self._registry.groups().get(group, ()):
                return self._resources(group, version), plain
        return None

    def _group(self, group: str) -> dict[str, Any]:
        versions = [{"groupVersion": f"{group}/{v}", "version": v} for v in self._registry.groups()[group]]
        return {"name": group, "versions": versions, "preferredVersion": versions[0]}

    def _of(self, group: str, version: str) -> list[Resource]:
        return [r for r in self._registry.resources if (r.group, r.version) == (group, version)]

    def _resources(self, group: str, version: str) -> dict[str, Any]:
        listed = []
        for resource in self._of(group, version):
            one: dict[str, Any] = {
                "name": resource.plural,
                "singularName": resource.singular,
                "namespaced": resource.namespaced,
                "kind": resource.kind,
                "verbs": sorted(resource.verbs),
            }
            if resource.short_names:
                one["shortNames"] = list(resource.short_names)
            if resource.categories:
                one["categories"] = list(resource.categories)
            listed.append(one)
            for name, (kind_group, kind_version, kind, verbs) in _subresources(resource).items():
                sub = {"name": f"{resource.plural}/{name}", "singularName": "", "namespaced": resource.namespaced}
                if kind_group != group:
                    sub |= {"group": kind_group, "version": kind_version}
                listed.append({**sub, "kind": kind, "verbs": verbs})
        group_version = f"{group}/{version}" if group else version
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed}

    def _groups_v2(self, *, core: bool) -> dict[str, Any]:
        items = []
        for group, versions in self._registry.groups().items():
            if (group == "") != core:
                continue
            described = []
            for version in versions:
                found = []
                for resource in self._of(group, version):
                    one: dict[str, Any] = {
                        "resource": resource.plural,
                        "responseKind": {"group": group, "version": version, "kind": resource.kind},
                        "scope": "Namespaced" if resource.namespaced else "Cluster",
                        "singularResource": resource.singular,
                        "verbs": sorted(resource.verbs),
                    }
                    if resource.short_names:
                        one["shortNames"] = list(resource.short_names)
                    if resource.categories:
                        one["categories"] = list(resource.categories)
                    subresources = [
                        {"subresource": name, "responseKind": {"group": g, "version": v, "kind": k}, "verbs": verbs}
                        for name, (g, v, k, verbs) in _subresources(resource).items()
                    ]
                    if subresources:
                        one["subresources"] = subresources
                    found.append(one)
                described.append({"version": version, "resources": found, "freshness": "Current"})
            items.append({"metadata": {"name": group or None, "creationTimestamp": None}, "versions": described})
        return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


_SUBRESOURCE_VERBS = {
    "log": ["get"],
    "binding": ["create"],
    "eviction": ["create"],
    "token": ["create"],
    "exec": ["create", "get"],
    "attach": ["create", "get"],
    "portforward": ["create", "get"],
    "proxy": ["create", "delete", "get", "patch", "update"],
    "finalize": ["update"],
}


def _subresources(resource: Resource) -> dict[str, tuple[str, str, str, list[str]]]:
    """Name → group, version and kind of what it takes, and its verbs."""
    found = {
        name: (*gvk, _SUBRESOURCE_VERBS.get(name, ["get", "patch", "update"])) for name, gvk in resource.subresources.items()
    }
    if resource.status:
        found["status"] = (*resource.gvk, ["get", "patch", "update"])
    return found
