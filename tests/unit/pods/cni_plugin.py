"""A CNI plugin for a warm helper: it adds an address, and hangs in an ADD whose arguments say so."""

import json
import time
from collections.abc import Mapping


def run(environ: Mapping[str, str], stdin: bytes) -> tuple[int, bytes]:
    if environ["CNI_COMMAND"] != "ADD":
        return 0, b""
    if "HANG=yes" in environ["CNI_ARGS"]:
        time.sleep(88)
    result = json.loads(stdin)["prevResult"]
    result["ips"].append({"address": "10.9.9.9/24"})
    return 0, json.dumps(result).encode()
