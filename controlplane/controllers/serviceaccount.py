"""Every namespace has a ServiceAccount `default`, which pods run as that name no other."""

from controlplane.controllers.frame import Context, Controller
from strata.kubeclient.errors import ApiError
from strata.kubeclient.resources import NAMESPACES, SERVICEACCOUNTS

_NAME = "default"


class ServiceAccountController(Controller[str]):
    name = "serviceaccount"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.namespaces, self.accounts = self.informer(NAMESPACES), self.informer(SERVICEACCOUNTS)
        self.on_change(self.namespaces, lambda namespace: self.queue.add(namespace["metadata"]["name"]), deletions=False)
        self.accounts.add_handler(on_delete=lambda account: self.queue.add(account["metadata"]["namespace"]))

    async def sync(self, key: str) -> None:
        namespace = self.namespaces.get(key)
        if namespace is None or namespace["metadata"].get("deletionTimestamp") or self.accounts.get(_NAME, key):
            return
        try:
            await self.client.create(SERVICEACCOUNTS, {"metadata": {"name": _NAME, "namespace": key}})
        except ApiError as error:
            if not error.is_already_exists and not error.is_namespace_terminating:
                raise
