"""Life cycle hooks: postStart and preStop, by exec, httpGet, sleep (and tcpSocket, which does nothing, as in Kubernetes)."""

import asyncio
from typing import Any

from kubelet import checks
from kubelet.runtime import Runtime


async def run_hook(
    handler: dict[str, Any], container: dict[str, Any], container_id: str, pod_ip: str, runtime: Runtime, seconds: float
) -> str:
    """Runs a hook for at most so many seconds. The text of its failure; empty when it went well."""
    try:
        async with asyncio.timeout(seconds):
            if handler.get("sleep"):
                await asyncio.sleep(handler["sleep"]["seconds"])
                return ""
            if handler.get("exec"):
                result = await checks.check({"exec": handler["exec"]}, container, container_id, pod_ip, runtime, seconds)
                return "" if result.ok else f"Exec lifecycle hook ({handler['exec'].get('command')}) failed: {result.text}"
            if handler.get("httpGet"):
                result = await checks.check({"httpGet": handler["httpGet"]}, container, container_id, pod_ip, runtime, seconds)
                return "" if result.ok else f"HTTP lifecycle hook ({handler['httpGet'].get('path', '/')}) failed: {result.text}"
            return ""
    except TimeoutError:
        return f"the hook was not done within {seconds:g} s"
