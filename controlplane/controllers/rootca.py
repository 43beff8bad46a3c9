"""Every namespace has a ConfigMap with the CA that pods trust the API server by (kube-root-ca.crt)."""

from typing import Any

from controlplane.controllers.frame import Context, Controller
from strata.kubeclient.errors import ApiError
from strata.kubeclient.resources import CONFIGMAPS, NAMESPACES

_NAME, _KEY = "kube-root-ca.crt", "ca.crt"
_WHAT_IT_IS = (
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal "
    "service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."
)


class RootCaPublisher(Controller[str]):
    """Works only where the settings name a root CA."""

    name = "rootca"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.namespaces = self.informer(NAMESPACES)
        self.maps = context.informers.of(CONFIGMAPS, field_selector=f"metadata.name={_NAME}")
        if self.settings.root_ca:
            self.on_change(self.namespaces, lambda namespace: self.queue.add(namespace["metadata"]["name"]), deletions=False)
            self.on_change(self.maps, lambda config_map: self.queue.add(config_map["metadata"]["namespace"]))

    async def sync(self, key: str) -> None:
        namespace = self.namespaces.get(key)
        if self.settings.root_ca is None or namespace is None or namespace["metadata"].get("deletionTimestamp"):
            return
        data = {_KEY: self.settings.root_ca.read_text()}
        current = self.maps.get(_NAME, key)
        try:
            if current is None:
                annotations = {"kubernetes.io/description": _WHAT_IT_IS}
                metadata: dict[str, Any] = {"name": _NAME, "namespace": key, "annotations": annotations}
                await self.client.create(CONFIGMAPS, {"metadata": metadata, "data": data})
            elif current.get("data") != data:
                await self.client.update(CONFIGMAPS, {**current, "data": data})
        except ApiError as error:
            if not error.is_already_exists and not error.is_namespace_terminating and not error.is_not_found:
                raise
