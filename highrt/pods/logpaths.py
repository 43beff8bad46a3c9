"""Where a container's log lies: below its pod's log directory, whatever links a container makes there that has it as a volume."""

import contextlib
import os

from highrt.pods.errors import InvalidArgument
from highrt.pods.model import Container, Pod
from strata.protocols.cri_pb2 import ContainerConfig, PodSandboxConfig


def path(pod: Pod, sandbox_config: PodSandboxConfig | None, config: ContainerConfig) -> str:
    """The whole path, "" where there is no log. sandbox_config: where it has a log directory, that one counts.

    Raises InvalidArgument where it would not be below the log directory.
    """
    folder = (sandbox_config.log_directory if sandbox_config else "") or pod.config.log_directory
    if not folder or not config.log_path:
        return ""
    if not folder.startswith("/"):
        raise InvalidArgument(f"log_directory {folder!r}: must be an absolute path")
    below = os.path.normpath(config.log_path)
    if below.startswith("/") or below.partition("/")[0] in (".", ".."):
        raise InvalidArgument(f"log_path {config.log_path!r} leads out of the pod's log directory, or is that")
    return os.path.join(os.path.normpath(folder), below)


def prepare(container: Container) -> str:
    """Makes the folder of the log, and gives the log's path without links ("" where there is none): a monitor opens it so that
    links that come later lead nowhere. The log directory itself may be reached by links: they are not the containers'.

    Raises InvalidArgument where a name below it is a link or no folder, OSError.
    """
    if not container.log_path:
        return ""
    below = os.path.normpath(container.config.log_path)
    folder = os.path.realpath(container.log_path.removesuffix(f"/{below}"))
    os.makedirs(folder, exist_ok=True)
    here = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in below.split("/")[:-1]:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=here)
            above, here = here, os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(above)
    except NotADirectoryError:
        raise InvalidArgument(f"log_path {container.config.log_path!r}: {name!r} is a link, or no folder") from None
    finally:
        os.close(here)
    return os.path.join(folder, below)
