"""What a plugin's process pays for: nothing of a daemon's."""

import subprocess
import sys


def test_the_plugins_import_no_kubernetes_client_and_no_http() -> None:
    code = (
        "import sys; import nodenet.cni.main, nodenet.cni.bridge, nodenet.cni.portmap, nodenet.cni.loopback; "
        "print([m for m in ('aiohttp', 'strata.kubeclient', 'click', 'orjson', 'dnslib', 'yaml') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
