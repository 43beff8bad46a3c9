"""linux.sysctl (runtime-spec config-linux, Sysctl): which may be set is checked in `config`; here they are written."""

import os

from lowrt import config, documents
from lowrt.errors import RuntimeFailure, reason
from strata.linux import procfs


def write_all(given: "dict[str, str]") -> None:
    """Writes parameters of this process's namespaces, through a procfs that nothing is mounted over. Raises RuntimeFailure."""
    if not given:
        return
    root = procfs.open_root()
    try:
        for name, value in given.items():
            try:
                procfs.write(root, f"sys/{config.sysctl_path(name)}", value)
            except OSError as error:
                why = reason(OSError(error.errno, error.strerror))
                raise RuntimeFailure(f"failed to write sysctl {name} = {documents.dumps(value)}: {why}") from None
    finally:
        os.close(root)
