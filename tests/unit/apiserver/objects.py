"""Small objects that many tests need, and where they are served."""

from typing import Any

Json = dict[str, Any]

PODS = "/api/v1/namespaces/default/pods"
SERVICES = "/api/v1/namespaces/default/services"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
SECRETS = "/api/v1/namespaces/default/secrets"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"


def pod(name: str = "web", *, labels: dict[str, str] | None = None, **spec: Any) -> Json:
    return {
        "metadata": {"name": name, **({"labels": labels} if labels else {})},
        "spec": {"containers": [{"name": "main", "image": "nginx:1"}], **spec},
    }


def config_map(name: str = "settings", **data: str) -> Json:
    return {"metadata": {"name": name}, "data": data}


def deployment(name: str = "web", replicas: int = 3) -> Json:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "containers": [
                        {"name": "main", "image": "nginx:1", "ports": [{"containerPort": 80}]},
                        {"name": "side", "image": "busybox"},
                    ]
                },
            },
        },
    }


def service(name: str = "web", **spec: Any) -> Json:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], "selector": {"app": name}, **spec}}
