"""Builds: a Containerfile and a context to an image, a layer for each instruction that changes files.

Stages are built when something needs them. An instruction's layer is found again by what it stands on, its text and the
content that it copies (`metadata`, build_cache), so a build of the same things gives the same image. No instruction reaches
a network; base images come from the store or from their registry.
"""

import asyncio
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from highrt.images import copying
from highrt.images.containerfile import Instruction, Stage, expand, pairs, parse, words
from highrt.images.errors import BuildError, ImageError
from highrt.images.ignore import Ignore
from highrt.images.metadata import CachedStep
from highrt.images.model import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, Image, Platform
from highrt.images.reference import parse as parse_reference
from highrt.images.rooted import RootedTree
from highrt.images.service import ImageService, layers_of
from highrt.images.snapshots import chain_ids
from highrt.images.steps import RunStep, runtime_step
from highrt.images.users import find_group, find_user
from strata.telemetry.spans import span

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHELL = ["/bin/sh", "-c"]
_EPOCH = "SOURCE_DATE_EPOCH"
_PREDEFINED = {"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY", _EPOCH}
_PORT = re.compile(r"[0-9]+(-[0-9]+)?(/(tcp|udp|sctp))?")
_MOUNT_POINTS = ("proc", "dev", "sys")
"""What the runtime makes in a root to mount on; a layer must not have them because of that."""


async def build(
    service: ImageService,
    context: Path,
    *,
    tag: str | None = None,
    file: Path | None = None,
    build_args: Mapping[str, str] | None = None,
    build_contexts: Mapping[str, Path] | None = None,
    target: str | None = None,
    no_cache: bool = False,
    progress: Callable[[str], None] | None = None,
    run_step: RunStep | None = None,
) -> Image:
    """Builds an image, and pins it.

    file: the Containerfile, by default Containerfile or Dockerfile in the context. build_contexts: more folders, by the name
    that COPY --from calls them. target: the stage to end at. progress: gets lines for people. run_step: executes RUN; by
    default a container of `lowrt`. Raises BuildError with the line, and what pulls raise.
    """
    say = progress or (lambda _: None)
    if not context.is_dir():
        raise BuildError(f"the context {context} is not a folder")
    name = parse_reference(tag) if tag else None
    if name and name.digest:
        raise BuildError(f"an image cannot be built as {tag}: give it a tag, its digest comes out of the build")
    containerfile = _containerfile(context, file)
    try:
        text = containerfile.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"cannot read {containerfile}: {error}") from None
    for other, path in (build_contexts or {}).items():
        if not path.is_dir():
            raise BuildError(f"the build context {other}={path} is not a folder")
    arguments, stages = parse(text)
    with span("build image", image=tag or str(context)):
        async with service.working():
            plan = _Build(
                service=service,
                context=context,
                contexts=dict(build_contexts or {}),
                stages=stages,
                build_args=dict(build_args or {}),
                say=say,
                run_step=run_step or runtime_step(say, folder=service.steps),
                use_cache=not no_cache,
            )
            plan.global_arguments(arguments)
            result = await plan.stage(_target(stages, target))
            plan.warn_unused()
            return result.commit(service, name.stored if name else None, say)


def _containerfile(context: Path, file: Path | None) -> Path:
    if file is not None:
        return file if file.is_absolute() or file.exists() else context / file
    for name in ("Containerfile", "Dockerfile"):
        if (context / name).exists():
            return context / name
    raise BuildError(f"{context} has no Containerfile or Dockerfile: name it with --file")


def _target(stages: Sequence[Stage], target: str | None) -> int:
    if target is None:
        return len(stages) - 1
    for number, stage in enumerate(stages):
        if target.lower() == stage.name or target == str(number):
            return number
    have = ", ".join(stage.name for stage in stages if stage.name) or "none with a name"
    raise BuildError(f"there is no stage {target!r}; the stages are: {have}")


@dataclass
class _State:
    """An image while it is built."""

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

    def inherit(self) -> "_State":
        """A stage that begins where this one ended."""
        return _State(
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

    def commit(self, service: ImageService, name: str | None, say: Callable[[str], None]) -> Image:
        """Writes configuration and manifest, and names the image."""
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
        image = service.record(config.digest, described, {name: described.digest} if name else {}, pinned=True)
        say(f"built {name or 'an image without a name'}: {image.id}")
        return image


class _Build:
    """One build: its stages, and what they share."""

    def __init__(
        self,
        *,
        service: ImageService,
        context: Path,
        contexts: dict[str, Path],
        stages: list[Stage],
        build_args: dict[str, str],
        say: Callable[[str], None],
        run_step: RunStep,
        use_cache: bool,
    ) -> None:
        self._service, self._context, self._contexts, self._stages = service, context, contexts, stages
        self._build_args, self._say, self._run_step, self._use_cache = build_args, say, run_step, use_cache
        self._ignore = Ignore.of(context)
        self._done: dict[int, _State] = {}
        self._globals: dict[str, str] = {}
        self._used: set[str] = set()
        epoch = build_args.get(_EPOCH, "")
        if epoch and not epoch.isdigit():
            raise BuildError(f"the build argument {_EPOCH} must be seconds since 1970, not {epoch!r}")
        self._epoch = int(epoch) if epoch else None

    # arguments

    def global_arguments(self, instructions: Sequence[Instruction]) -> None:
        """The ARGs before the first FROM, and those that every build has."""
        host = Platform.host()
        for side in ("TARGET", "BUILD"):
            self._globals[f"{side}PLATFORM"] = str(host)
            self._globals[f"{side}OS"], self._globals[f"{side}ARCH"] = host.os, host.architecture
            self._globals[f"{side}VARIANT"] = host.variant
        for instruction in instructions:
            self._globals |= self._declared(instruction, self._globals)

    def _declared(self, instruction: Instruction, variables: Mapping[str, str]) -> dict[str, str]:
        """The values of an ARG: the caller's, or else its default, or else the global one."""
        found = {}
        for word in _words(instruction, variables):
            name, equals, default = word.partition("=")
            if name in self._build_args:
                self._used.add(name)
                found[name] = self._build_args[name]
            elif equals:
                found[name] = default
            elif name in self._globals:
                found[name] = self._globals[name]
        return found

    def warn_unused(self) -> None:
        unused = set(self._build_args) - self._used - _PREDEFINED - {name.lower() for name in _PREDEFINED}
        if unused:
            self._say(f"warning: no ARG declares the build argument {', '.join(sorted(unused))}")

    # stages

    async def stage(self, number: int) -> _State:
        """A stage's image, built the first time that it is wanted."""
        if number not in self._done:
            stage = self._stages[number]
            state = await self._base(stage, number)
            total = len(stage.instructions) + 1
            for position, instruction in enumerate(stage.instructions, 2):
                self._say(f"[{stage.name or number} {position}/{total}] {instruction}")
                await self._execute(instruction, state, number)
            self._done[number] = state
        return self._done[number]

    async def _base(self, stage: Stage, number: int) -> _State:
        base = stage.base
        text = _expand(base, base.text.split()[0], self._globals)
        total = len(stage.instructions) + 1
        self._say(f"[{stage.name or number} 1/{total}] FROM {text}")
        platform = _expand(base, base.flags.get("platform", ""), self._globals) or None
        if (earlier := self._stage_called(text, number)) is not None:
            return (await self.stage(earlier)).inherit()
        if text == "scratch":
            state = _State(Platform.parse(platform))
            state.env.append(_PATH)
            return state
        image = await self._image(base, text, platform)
        document = self._service.content.document(image.id)
        state = _State(
            platform=Platform.parse(image.platform),
            config={key: value for key, value in (document.get("config") or {}).items() if value is not None},
            layers=layers_of(self._service.content.document(image.manifest.digest), text),
            diff_ids=[*image.diff_ids],
            history=document.get("history") or [],
            author=str(document.get("author", "")),
            created=image.created,
        )
        state.config.pop("Image", None)
        if not any(item.startswith("PATH=") for item in state.env):
            state.env.append(_PATH)
        return state

    def _stage_called(self, name: str, before: int) -> int | None:
        for number, stage in enumerate(self._stages[:before]):
            if name.lower() == stage.name:
                return number
        return int(name) if name.isdigit() and int(name) < before else None

    async def _image(self, instruction: Instruction, name: str, platform: str | None) -> Image:
        try:
            found = None if platform else self._service.resolve(name)
            return found or await self._service.pull(name, platform=platform)
        except ImageError as error:
            raise instruction.fail(str(error)) from None

    # instructions

    async def _execute(self, instruction: Instruction, state: _State, number: int) -> None:
        text = str(instruction)
        match instruction.name:
            case "RUN":
                await self._run(instruction, state)
            case "COPY" | "ADD":
                await self._copy(instruction, state, number)
            case "WORKDIR":
                await self._workdir(instruction, state)
            case "ARG":
                state.arguments |= self._declared(instruction, state.variables())
                state.note(text)
            case "HEALTHCHECK":
                self._say(f"warning: line {instruction.line}: HEALTHCHECK is left out, OCI images have none (use a pod's probes)")
            case _:
                _configure(instruction, state)
                state.note(text)

    async def _run(self, instruction: Instruction, state: _State) -> None:
        argv = instruction.exec_form() or [*state.shell, instruction.text]
        declared = [f"{key}={value}" for key, value in sorted(state.arguments.items())]
        names = {item.partition("=")[0] for item in state.env}
        env = [*state.env, *(item for item in declared if item.partition("=")[0] not in names)]
        cwd, user = state.config.get("WorkingDir", "") or "/", state.config.get("User", "")

        async def act(root: Path) -> None:
            missing = [root / name for name in _MOUNT_POINTS if not os.path.lexists(root / name)]
            code = await self._run_step(root, argv, env, cwd, user)
            for path in missing:
                if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
                    path.rmdir()
            if code != 0:
                raise instruction.fail(f"it ended with exit code {code}")

        await self._layer(instruction, state, ["RUN", argv, env, cwd, user], act)

    async def _workdir(self, instruction: Instruction, state: _State) -> None:
        path = _expand(instruction, instruction.text, state.variables())
        state.config["WorkingDir"] = path = os.path.normpath(os.path.join("/", state.config.get("WorkingDir", ""), path))

        async def act(root: Path) -> None:
            with RootedTree(str(root)) as tree:
                copying.make_directory(tree, path)

        await self._layer(instruction, state, ["WORKDIR", path], act, keep_empty=False)

    async def _copy(self, instruction: Instruction, state: _State, number: int) -> None:
        *patterns, destination = self._copied(instruction, state)
        for pattern in patterns:
            if "://" in pattern or pattern.startswith("git@"):
                raise instruction.fail("a build reaches no network: put the file into the context")
        destination = _destination(destination, state.config.get("WorkingDir", ""))
        async with AsyncExitStack() as stack:
            context, ignore = await self._source(instruction, state, number, stack)
            try:
                sources = [source for pattern in patterns for source in copying.find(context, pattern, ignore)]
                content = await asyncio.to_thread(copying.digest, context, sources)
            except (BuildError, OSError) as error:
                raise instruction.fail(str(error)) from None
            chown = _expand(instruction, instruction.flags.get("chown", ""), state.variables())
            mode = _mode(instruction)

            def write(root: Path) -> None:
                with RootedTree(str(root)) as tree:
                    owner = _owner(tree, chown, mode)
                    copying.copy(context, sources, tree, destination, owner, unpack_archives=instruction.name == "ADD")

            async def act(root: Path) -> None:
                await asyncio.to_thread(write, root)

            await self._layer(instruction, state, [instruction.name, content, destination, chown, mode], act)

    def _copied(self, instruction: Instruction, state: _State) -> list[str]:
        listed = instruction.exec_form()
        variables = state.variables()
        found = [_expand(instruction, item, variables) for item in listed] if listed else _words(instruction, variables)
        if len(found) < 2:
            raise instruction.fail("write the files, and then where they go")
        return found

    async def _source(
        self, instruction: Instruction, state: _State, number: int, stack: AsyncExitStack
    ) -> tuple[RootedTree, Ignore]:
        """Where COPY takes files from: the context, another one by name, a stage or an image."""
        name = _expand(instruction, instruction.flags.get("from", ""), {**self._globals, **state.variables()})
        if not name:
            return stack.enter_context(RootedTree(str(self._context))), self._ignore
        if name in self._contexts:
            return stack.enter_context(RootedTree(str(self._contexts[name]))), Ignore()
        earlier = self._stage_called(name, number)
        if earlier is not None:
            other = await self.stage(earlier)
            layers, diff_ids = other.layers, other.diff_ids
        else:
            image = await self._image(instruction, name, None)
            layers = layers_of(self._service.content.document(image.manifest.digest), name)
            diff_ids = [*image.diff_ids]
        root, _ = await stack.enter_async_context(self._service.mounted(layers, diff_ids))
        return stack.enter_context(RootedTree(str(root))), Ignore()

    async def _layer(
        self,
        instruction: Instruction,
        state: _State,
        known_by: Sequence[Any],
        act: Callable[[Path], Awaitable[None]],
        *,
        keep_empty: bool = True,
    ) -> None:
        """Adds the layer of what `act` does to a mounted root, or the one that it gave before."""
        text = str(instruction)
        material = json.dumps([state.chain, known_by, self._epoch]).encode()
        key = hashlib.sha256(material).hexdigest()
        cached = self._service.metadata.cached_step(key) if self._use_cache else None
        if cached and self._service.content.has(cached.layer.digest):
            self._say("  cached")
            state.add(cached, text)
            return
        blob = self._service.content.scratch(uuid.uuid4().hex)
        try:
            async with self._service.mounted(state.layers, state.diff_ids) as (root, rootfs):
                try:
                    await act(root)
                except BuildError as error:
                    raise error if str(error).startswith("line ") else instruction.fail(str(error)) from None
                except (ImageError, OSError) as error:
                    raise instruction.fail(str(error)) from None
                packed = await self._service.workers.pack_layer(rootfs.upper, blob, latest_mtime=self._epoch)
            if not packed.entries and not keep_empty:
                state.note(text)
                return
            await asyncio.to_thread(self._service.content.add_file, blob, packed.digest)
        finally:
            blob.unlink(missing_ok=True)
        created = datetime.fromtimestamp(self._epoch if self._epoch is not None else int(time.time()), UTC)
        step = CachedStep(
            Descriptor(f"{OCI_LAYER}+gzip", packed.digest, packed.size), packed.diff_id, created.strftime("%Y-%m-%dT%H:%M:%SZ")
        )
        self._service.metadata.cache_step(key, step, {"instruction": text})
        state.add(step, text)


def _configure(instruction: Instruction, state: _State) -> None:
    """The instructions that change nothing but the configuration."""
    variables = state.variables()
    config, listed = state.config, instruction.exec_form()
    match instruction.name:
        case "ENV":
            state.set_env(_pairs(instruction, variables))
        case "LABEL":
            config["Labels"] = {**(config.get("Labels") or {}), **_pairs(instruction, variables)}
        case "USER":
            config["User"] = _expand(instruction, instruction.text, variables)
        case "CMD":
            config["Cmd"] = listed if listed is not None else [*state.shell, instruction.text]
            state.has_command = True
        case "ENTRYPOINT":
            config["Entrypoint"] = listed if listed is not None else [*state.shell, instruction.text]
            if not state.has_command:
                config.pop("Cmd", None)  # the base's command was meant for the base's entry point
        case "EXPOSE":
            ports = _words(instruction, variables)
            for port in ports:
                if not _PORT.fullmatch(port):
                    raise instruction.fail(f"{port!r} is not a port, like 80 or 53/udp")
            added: dict[str, Any] = {port if "/" in port else f"{port}/tcp": {} for port in ports}
            config["ExposedPorts"] = {**(config.get("ExposedPorts") or {}), **added}
        case "VOLUME":
            paths = listed if listed is not None else _words(instruction, variables)
            config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in paths}}
        case "STOPSIGNAL":
            config["StopSignal"] = _expand(instruction, instruction.text, variables)
        case "SHELL":
            if not listed:
                raise instruction.fail('write it as a list, ["/bin/sh", "-c"]')
            state.shell = listed
        case "MAINTAINER":
            state.author = instruction.text
        case _:
            raise instruction.fail("it is not supported here")


def _destination(path: str, working_dir: str) -> str:
    whole = os.path.normpath(os.path.join("/", working_dir, path))
    return whole.rstrip("/") + "/" if path.endswith(("/", "/.")) or path == "." else whole


def _mode(instruction: Instruction) -> int | None:
    text = instruction.flags.get("chmod", "")
    if text and not re.fullmatch(r"0?[0-7]{3,4}", text):
        raise instruction.fail(f"--chmod={text} is not an octal mode, like 755")
    return int(text, 8) if text else None


def _owner(tree: RootedTree, chown: str, mode: int | None) -> copying.Ownership:
    if not chown:
        return copying.Ownership(mode=mode)
    user, colon, group = chown.partition(":")
    who = find_user(tree, user)
    # Without a group, the group has the user's number (the Dockerfile reference, COPY --chown).
    gid = find_group(tree, group) if colon else (who.uid if user.isdigit() else who.gid)
    return copying.Ownership(who.uid, gid, mode)


def _expand(instruction: Instruction, text: str, variables: Mapping[str, str]) -> str:
    try:
        return expand(text, variables)
    except ValueError as error:
        raise instruction.fail(str(error)) from None


def _words(instruction: Instruction, variables: Mapping[str, str]) -> list[str]:
    try:
        return words(instruction.text, variables)
    except ValueError as error:
        raise instruction.fail(str(error)) from None


def _pairs(instruction: Instruction, variables: Mapping[str, str]) -> dict[str, str]:
    try:
        return pairs(instruction.text, variables)
    except ValueError as error:
        raise instruction.fail(str(error)) from None
