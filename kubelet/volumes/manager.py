"""All volumes of the node's pods."""

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

from kubelet.expansion import expand, missing
from kubelet.fields import Facts
from kubelet.resources import quantities
from kubelet.volumes import atomic, directories, subpath
from kubelet.volumes.errors import VolumeError
from kubelet.volumes.payload import KINDS, Payloads
from strata.kubeclient.errors import ApiError
from strata.kubeclient.quantity import to_bytes
from strata.linux import mounts
from strata.protocols import cri_pb2 as cri

_PLUGIN = {
    "configMap": "kubernetes.io~configmap",
    "secret": "kubernetes.io~secret",
    "downwardAPI": "kubernetes.io~downward-api",
    "projected": "kubernetes.io~projected",
    "emptyDir": "kubernetes.io~empty-dir",
}
_PROPAGATION = {
    "None": cri.PROPAGATION_PRIVATE,
    "HostToContainer": cri.PROPAGATION_HOST_TO_CONTAINER,
    "Bidirectional": cri.PROPAGATION_BIDIRECTIONAL,
}


class VolumeManager:
    """Makes, refreshes and takes away volumes below `root/pods/UID`.

    payloads: where the files of ConfigMaps, Secrets, the downward API and projections come from.
    """

    def __init__(self, root: Path, payloads: Payloads) -> None:
        self._root = root
        self._payloads = payloads

    def pod_folder(self, uid: str) -> Path:
        return self._root / "pods" / uid

    async def mount(self, pod: dict[str, Any], facts: Facts) -> None:
        """Makes all volumes of a pod, or brings those that are there up to date.

        Raises VolumeError, which names the volume and says what is wrong.
        """
        for volume in pod["spec"].get("volumes") or []:
            try:
                await self._mount_one(pod, volume, facts)
            except (VolumeError, ApiError, OSError, ValueError) as error:
                raise VolumeError(f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}') from error

    async def _mount_one(self, pod: dict[str, Any], volume: dict[str, Any], facts: Facts) -> None:
        kind = _kind(volume)
        source = volume.get(kind) or {}
        if kind == "hostPath":
            directories.check_host_path(source)
            return
        path = self._path(pod, volume)
        group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
        if kind == "emptyDir":
            if not path.exists() or (source.get("medium") == "Memory" and not os.path.ismount(path)):
                directories.make_empty_dir(path, source, _memory_limit(pod), group)
            return
        files = await self._payloads.gather(pod, kind, source, facts)
        if kind in ("secret", "projected"):
            directories.make_memory_dir(path)
        atomic.write(path, files, group)

    def _path(self, pod: dict[str, Any], volume: dict[str, Any]) -> Path:
        """Where a volume is on the host."""
        kind = _kind(volume)
        if kind == "hostPath":
            return Path(volume["hostPath"]["path"])
        return Path(self.pod_folder(pod["metadata"]["uid"]), "volumes", _PLUGIN[kind], volume["name"])

    def container_mounts(self, pod: dict[str, Any], container: dict[str, Any], environ: dict[str, str]) -> list[cri.Mount]:
        """The CRI mounts of a container's volumeMounts; binds subPaths. Raises VolumeError."""
        volumes = {v["name"]: v for v in pod["spec"].get("volumes") or []}
        found = []
        for index, wanted in enumerate(container.get("volumeMounts") or []):
            volume = volumes.get(wanted["name"])
            if volume is None:
                raise VolumeError(f'volumeMount "{wanted["name"]}" of container {container["name"]} names no volume of the pod')
            path, kind = self._path(pod, volume), _kind(volume)
            sub_path = wanted.get("subPath") or ""
            if wanted.get("subPathExpr"):
                unknown = missing(wanted["subPathExpr"], environ)
                if unknown:
                    raise VolumeError(f"missing value for {unknown[0]!r} of subPathExpr {wanted['subPathExpr']!r}")
                sub_path = expand(wanted["subPathExpr"], environ)
            if sub_path:
                target = (
                    self.pod_folder(pod["metadata"]["uid"]) / "volume-subpaths" / volume["name"] / container["name"] / str(index)
                )
                subpath.bind(path, sub_path, target, make=kind in ("emptyDir", "hostPath"))
                path = target
            elif kind == "hostPath" and not path.exists():
                # As Kubernetes has it: a hostPath without a type is made, as a directory.
                path.mkdir(parents=True, mode=0o755)
            found.append(
                cri.Mount(
                    container_path=os.path.join("/", wanted["mountPath"]),
                    host_path=str(path),
                    readonly=bool(wanted.get("readOnly")) or kind in KINDS,
                    propagation=_PROPAGATION[wanted.get("mountPropagation") or "None"],
                )
            )
        return found

    async def unmount(self, uid: str) -> None:
        """Takes away everything of a pod that has no containers any more. Raises OSError."""
        await asyncio.to_thread(self._unmount, self.pod_folder(uid))

    def _unmount(self, folder: Path) -> None:
        if not folder.exists():
            return
        mounts.umount_below(str(folder))
        left = [m.target for m in mounts.mountinfo() if m.target.startswith(f"{folder}/")]
        if left:
            # Removing the tree would remove what is mounted, a hostPath of the user's among it.
            raise OSError(16, "still mounted", left[0])
        shutil.rmtree(folder)

    def uids(self) -> set[str]:
        """The pods that have a folder."""
        try:
            return set(os.listdir(self._root / "pods"))
        except FileNotFoundError:
            return set()


def _kind(volume: dict[str, Any]) -> str:
    """A volume's type. Raises VolumeError for one that this kubelet cannot make."""
    for kind in ("hostPath", *_PLUGIN):
        if volume.get(kind) is not None:
            return kind
    kinds = [k for k in volume if k != "name"]
    if not kinds:
        return "emptyDir"
    raise VolumeError(f"volume type {kinds[0]} is not supported by this kubelet")


def _memory_limit(pod: dict[str, Any]) -> int:
    """The sum of the containers' memory limits; 0 where one has none."""
    limits = [to_bytes(quantities(c, "limits").get("memory", 0)) for c in pod["spec"].get("containers", [])]
    return sum(limits) if all(limits) else 0
