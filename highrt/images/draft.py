"""An image while it is made: its layers so far, and its configuration, which instructions change.

Builds and `commit` make images of it.
"""

import asyncio
import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from highrt.images.containerfile import Instruction, expand, pairs, parse_instruction, words
from highrt.images.metadata import CachedStep
from highrt.images.model import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, Image, Platform
from highrt.images.service import ImageService, layers_of
from highrt.images.snapshots import chain_ids

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHELL = ["/bin/sh", "-c"]
_PORT = re.compile(r"[0-9]+(-[0-9]+)?(/(tcp|udp|sctp))?")
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ns|us|µs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")
_NANOSECONDS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


@dataclass
class Draft:
    """An image while it is made."""

    platform: Platform
    config: dict[str, Any] = field(default_factory=dict)
    layers: list[Descriptor] = field(default_factory=list)
    diff_ids: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    shell: list[str] = field(default_factory=lambda: [*_SHELL])
    author: str = ""
    created: str = ""
    has_command: bool = False

    @classmethod
    def from_scratch(cls, platform: str | None) -> "Draft":
        """One without layers. platform: OS/ARCH, None for this machine's."""
        return cls(Platform.parse(platform), config={"Env": [_PATH]})

    @classmethod
    def of(cls, service: ImageService, image: Image) -> "Draft":
        """One that begins as an image is."""
        document = service.content.document(image.id)
        draft = cls(
            platform=Platform.parse(image.platform),
            config={key: value for key, value in (document.get("config") or {}).items() if value is not None},
            layers=[*layers_of(service.content.document(image.manifest.digest), image.id)],
            diff_ids=[*image.diff_ids],
            history=document.get("history") or [],
            author=str(document.get("author", "")),
            created=image.created,
        )
        draft.config.pop("Image", None)
        if not any(item.startswith("PATH=") for item in draft.env):
            draft.env.append(_PATH)
        return draft

    @property
    def env(self) -> list[str]:
        found: list[str] = self.config.setdefault("Env", [])
        return found

    def variables(self) -> dict[str, str]:
        """What `$NAME` means: ENV hides an ARG of the same name."""
        return {**self.arguments, **dict(item.split("=", 1) for item in self.env)}

    def set_env(self, values: Mapping[str, str]) -> None:
        merged = {**dict(item.split("=", 1) for item in self.env), **values}
        self.config["Env"] = [f"{key}={value}" for key, value in merged.items()]

    @property
    def chain(self) -> str:
        return chain_ids(self.diff_ids)[-1] if self.diff_ids else ""

    def inherit(self) -> "Draft":
        """A stage that begins where this one ended."""
        return Draft(
            platform=self.platform,
            config=json.loads(json.dumps(self.config)),
            layers=[*self.layers],
            diff_ids=[*self.diff_ids],
            history=[*self.history],
            shell=[*self.shell],
            author=self.author,
            created=self.created,
        )

    def add(self, step: CachedStep, text: str) -> None:
        self.layers.append(step.layer)
        self.diff_ids.append(step.diff_id)
        self.history.append({"created": step.created, "created_by": text, "comment": "highrt"})
        self.created = max(self.created, step.created)

    def note(self, text: str) -> None:
        self.history.append({"created_by": text, "comment": "highrt", "empty_layer": True})

    def commit(self, service: ImageService, name: str | None) -> Image:
        """Writes configuration and manifest, names the image, and pins it."""
        document: dict[str, Any] = {
            "architecture": self.platform.architecture,
            "os": self.platform.os,
            "config": {key: value for key, value in self.config.items() if value not in ([], {}, "")},
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
            "history": self.history,
        }
        if self.created:
            document["created"] = self.created
        if self.author:
            document["author"] = self.author
        if self.platform.variant and self.platform.architecture != "arm64":
            document["variant"] = self.platform.variant
        config = service.content.add(json.dumps(document, sort_keys=True).encode(), OCI_CONFIG)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        described = service.content.add(json.dumps(manifest, sort_keys=True).encode(), OCI_MANIFEST)
        return service.record(config.digest, described, {name: described.digest} if name else {}, pinned=True)


async def pack(
    service: ImageService, folder: Path, *, epoch: int | None = None, without: Sequence[str] = (), keep_empty: bool = True
) -> CachedStep | None:
    """Makes a layer of an overlay's upper folder, in the content store. epoch, without: as of `packing.pack`.

    None where it holds nothing, unless keep_empty. Raises ImageError, OSError; then nothing is left.
    """
    blob = service.content.scratch(uuid.uuid4().hex)
    try:
        packed = await service.workers.pack_layer(folder, blob, latest_mtime=epoch, without=without)
        if not packed.entries and not keep_empty:
            return None
        await asyncio.to_thread(service.content.add_file, blob, packed.digest)
    finally:
        blob.unlink(missing_ok=True)
    created = datetime.fromtimestamp(epoch if epoch is not None else int(time.time()), UTC)
    layer = Descriptor(f"{OCI_LAYER}+gzip", packed.digest, packed.size)
    return CachedStep(layer, packed.diff_id, created.strftime("%Y-%m-%dT%H:%M:%SZ"))


def configure(instruction: Instruction, draft: Draft) -> None:
    """The instructions that change nothing but the configuration."""
    variables = draft.variables()
    config, listed = draft.config, instruction.exec_form()
    match instruction.name:
        case "ENV":
            draft.set_env(pairs_of(instruction, variables))
        case "LABEL":
            config["Labels"] = {**(config.get("Labels") or {}), **pairs_of(instruction, variables)}
        case "USER":
            config["User"] = expanded(instruction, instruction.text, variables)
        case "CMD":
            config["Cmd"] = listed if listed is not None else [*draft.shell, instruction.text]
            draft.has_command = True
        case "ENTRYPOINT":
            config["Entrypoint"] = listed if listed is not None else [*draft.shell, instruction.text]
            if not draft.has_command:
                config.pop("Cmd", None)  # the base's command was meant for the base's entry point
        case "EXPOSE":
            ports = words_of(instruction, variables)
            for port in ports:
                if not _PORT.fullmatch(port):
                    raise instruction.fail(f"{port!r} is not a port, like 80 or 53/udp")
            added: dict[str, Any] = {port if "/" in port else f"{port}/tcp": {} for port in ports}
            config["ExposedPorts"] = {**(config.get("ExposedPorts") or {}), **added}
        case "VOLUME":
            paths = listed if listed is not None else words_of(instruction, variables)
            config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in paths}}
        case "STOPSIGNAL":
            config["StopSignal"] = expanded(instruction, instruction.text, variables)
        case "SHELL":
            if not listed:
                raise instruction.fail('write it as a list, ["/bin/sh", "-c"]')
            draft.shell = config["Shell"] = listed
        case "HEALTHCHECK":
            config["Healthcheck"] = _health_check(instruction, variables)
        case "ONBUILD":
            config["OnBuild"] = [*(config.get("OnBuild") or []), instruction.text]
        case "MAINTAINER":
            draft.author = instruction.text
        case _:
            raise instruction.fail("it is not supported here")


def _health_check(instruction: Instruction, variables: Mapping[str, str]) -> dict[str, Any]:
    """Docker's extension of an image's configuration; a pod has probes of its own."""
    kind, _, rest = instruction.text.partition(" ")
    if kind.upper() == "NONE" and not rest:
        return {"Test": ["NONE"]}
    if kind.upper() != "CMD" or not rest.strip():
        raise instruction.fail("write HEALTHCHECK CMD COMMAND, or HEALTHCHECK NONE")
    command = parse_instruction(f"CMD {rest.strip()}", instruction.line)
    listed = command.exec_form()
    found: dict[str, Any] = {"Test": ["CMD", *listed] if listed is not None else ["CMD-SHELL", command.text]}
    for flag, key in (("interval", "Interval"), ("timeout", "Timeout"), ("start-period", "StartPeriod"),
                      ("start-interval", "StartInterval")):  # fmt: skip
        if text := expanded(instruction, instruction.flag(flag), variables):
            if not _DURATION.fullmatch(text):
                raise instruction.fail(f"--{flag}={text} is not a duration, like 30s or 1m30s")
            found[key] = int(sum(float(number) * _NANOSECONDS[unit] for number, unit in _DURATION_PART.findall(text)))
    if retries := expanded(instruction, instruction.flag("retries"), variables):
        if not retries.isdigit():
            raise instruction.fail(f"--retries={retries} is not a number")
        found["Retries"] = int(retries)
    return found


def expanded(instruction: Instruction, text: str, variables: Mapping[str, str]) -> str:
    try:
        return expand(text, variables)
    except ValueError as error:
        raise instruction.fail(str(error)) from None


def words_of(instruction: Instruction, variables: Mapping[str, str]) -> list[str]:
    try:
        return words(instruction.text, variables)
    except ValueError as error:
        raise instruction.fail(str(error)) from None


def pairs_of(instruction: Instruction, variables: Mapping[str, str]) -> dict[str, str]:
    try:
        return pairs(instruction.text, variables)
    except ValueError as error:
        raise instruction.fail(str(error)) from None
