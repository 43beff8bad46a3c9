"""Builds: a Containerfile and a context to an image, a layer for each instruction that changes files.

Only the stages that the target needs are built, those that do not need each other at the same time. An instruction's layer is
found again by what it stands on, its text and the content that it copies (`metadata`, build_cache), so a build of the same things
gives the same image; nothing that a pulled or loaded image says of itself is believed to be such a layer (CVE-2024-24557). No
instruction reaches a network; base images come from the store or from their registry.
"""

import asyncio
import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from highrt.images import copying, runmounts
from highrt.images.buildlog import BuildLog, StepLog
from highrt.images.containerfile import (
    HereDocument,
    Instruction,
    Stage,
    expand,
    expand_document,
    parse,
    parse_instruction,
)
from highrt.images.draft import Draft, configure, expanded, pack, words_of
from highrt.images.errors import BuildError, ImageError, StorageFailed, is_of_disk
from highrt.images.ignore import Ignore
from highrt.images.model import Descriptor, Image, Platform
from highrt.images.reference import parse as parse_reference
from highrt.images.rooted import RootedTree
from highrt.images.runmounts import RunMount
from highrt.images.service import ImageService, layers_of
from highrt.images.snapshots import chain_ids, remove_tree
from highrt.images.steps import RunStep, Step, StepMount, runtime_step
from highrt.images.users import find_group, find_user
from strata.linux import mounts, syscalls
from strata.telemetry.spans import span

_EPOCH = "SOURCE_DATE_EPOCH"
_PREDEFINED = {"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY", _EPOCH}
_SCRIPTS = "/dev/pipes"
"""Where a script that is written in a here-document lies while it runs, as with BuildKit."""
_BUILDS_AT_ONCE = os.cpu_count() or 1


async def build(
    service: ImageService,
    context: Path,
    *,
    tag: str | None = None,
    file: Path | None = None,
    text: str | None = None,
    build_args: Mapping[str, str] | None = None,
    build_contexts: Mapping[str, Path] | None = None,
    secrets: Mapping[str, bytes] | None = None,
    labels: Mapping[str, str] | None = None,
    target: str | None = None,
    no_cache: bool = False,
    pull: bool = False,
    progress: Callable[[str], None] | None = None,
    run_step: RunStep | None = None,
) -> Image:
    """Builds an image, and pins it.

    file: the Containerfile, by default Containerfile or Dockerfile in the context; text: its content, where it is no file.
    build_contexts: more folders, by the name that COPY --from calls them. secrets: what RUN --mount=type=secret gives to a step,
    by id. labels: are added to the image's own. target: the stage to end at. pull: ask the registries for newer base images.
    progress: gets lines for people. run_step: executes RUN; by default a container of `lowrt`. Raises BuildError with the line,
    and what pulls raise.
    """
    log = BuildLog(progress or (lambda _: None))
    if not context.is_dir():
        raise BuildError(f"the context {context} is not a folder")
    name = parse_reference(tag) if tag else None
    if name and name.digest:
        raise BuildError(f"an image cannot be built as {tag}: give it a tag, its digest comes out of the build")
    if text is None:
        containerfile = _containerfile(context, file)
        try:
            text = containerfile.read_text()
        except OSError as error:
            raise BuildError(f"cannot read {containerfile}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise BuildError(f"{containerfile} is no text in UTF-8: {error.reason} at byte {error.start}") from None
    for other, path in (build_contexts or {}).items():
        if not path.is_dir():
            raise BuildError(f"the build context {other}={path} is not a folder")
    arguments, stages = parse(text)
    try:
        with span("build image", image=tag or str(context)):
            async with service.working():
                plan = _Build(
                    service=service,
                    context=context,
                    contexts=dict(build_contexts or {}),
                    stages=stages,
                    build_args=dict(build_args or {}),
                    secrets=dict(secrets or {}),
                    log=log,
                    run_step=run_step or runtime_step(folder=service.steps),
                    use_cache=not no_cache,
                    pull=pull,
                )
                plan.global_arguments(arguments)
                result = await plan.run(_target(stages, target))
                plan.warn_unused()
                if labels:
                    result.config["Labels"] = {**(result.config.get("Labels") or {}), **labels}
                image = result.commit(service, name.stored if name else None)
                log.say(f"built {tag or 'an image without a name'}: {image.id}")
                return image
    except (ImageError, OSError) as error:
        if not is_of_disk(error):
            raise
        with suppress(ImageError, OSError):  # from a read-only disk nothing can be taken away
            await service.collect()  # a full one must not stay full of layers that no image has
        raise StorageFailed(f"{tag or 'an image without a name'} cannot be built: {error}") from None


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


@dataclass(frozen=True)
class _Origin:
    """Where COPY and mounts take files from: a folder, or else layers. known_by: tells layers apart."""

    folder: Path | None = None
    ignore: Ignore = field(default_factory=Ignore)
    layers: Sequence[Descriptor] = ()
    diff_ids: Sequence[str] = ()

    @property
    def known_by(self) -> str:
        return chain_ids(self.diff_ids)[-1] if self.diff_ids else ""


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
        secrets: dict[str, bytes],
        log: BuildLog,
        run_step: RunStep,
        use_cache: bool,
        pull: bool,
    ) -> None:
        self._service, self._context, self._contexts, self._stages = service, context, contexts, stages
        self._build_args, self._secrets, self._log, self._run_step = build_args, secrets, log, run_step
        self._use_cache, self._pull = use_cache, pull
        self._ignore = Ignore.of(context)
        self._begun: dict[int, asyncio.Task[Draft]] = {}
        self._at_once = asyncio.Semaphore(_BUILDS_AT_ONCE)
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
        for word in words_of(instruction, variables):
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
            self._log.warn(f"no ARG declares the build argument {', '.join(sorted(unused))}")

    # stages

    async def run(self, target: int) -> Draft:
        """Builds a stage and all that it needs. The first failure ends what else is under way."""
        wanted = self._begin(target)
        try:
            while not wanted.done():
                done, _ = await asyncio.wait(self._begun.values(), return_when=asyncio.FIRST_EXCEPTION, timeout=1)
                for task in done:
                    task.result()
            return wanted.result()
        finally:
            for task in self._begun.values():
                task.cancel()
            await asyncio.gather(*self._begun.values(), return_exceptions=True)

    def _begin(self, number: int) -> "asyncio.Task[Draft]":
        """The task of a stage: begun the first time that it is wanted, after those that it will need."""
        if number not in self._begun:
            for needed in sorted(self._needs(number)):
                self._begin(needed)
            self._begun[number] = asyncio.create_task(self._build_stage(number))
        return self._begun[number]

    def _needs(self, number: int) -> set[int]:
        """The stages that a stage names, as far as its text alone tells."""
        stage = self._stages[number]
        names = [expanded(stage.base, stage.base.text.split()[0], self._globals)]
        for instruction in stage.instructions:
            names.append(instruction.flag("from"))
            names += [part[5:] for mount in instruction.all_flags("mount") for part in mount.split(",") if part[:5] == "from="]
        return {found for name in names if name and (found := self._stage_called(name, number)) is not None}

    async def _stage(self, number: int) -> Draft:
        return await asyncio.shield(self._begin(number))

    async def _build_stage(self, number: int) -> Draft:
        stage = self._stages[number]
        prefix = f"{stage.name or f'stage-{number}'} " if len(self._stages) > 1 else ""
        state, triggers = await self._base(stage, number, f"[{prefix}1/{len(stage.instructions) + 1}]")
        instructions = [*triggers, *stage.instructions]
        for position, instruction in enumerate(instructions, 2):
            log = self._log.step(f"[{prefix}{position}/{len(instructions) + 1}] {instruction}")
            try:
                await self._execute(instruction, state, number, log)
            except ImageError as error:
                log.failed(str(error))
                raise
            log.done()
        return state

    async def _base(self, stage: Stage, number: int, place: str) -> tuple[Draft, list[Instruction]]:
        """What a stage begins with, and the base's triggers (ONBUILD), which come first."""
        base = stage.base
        text = expanded(base, base.text.split()[0], self._globals)
        platform = expanded(base, base.flag("platform"), self._globals) or None
        if (earlier := self._stage_called(text, number)) is not None:
            state = (await self._stage(earlier)).inherit()
            self._log.step(f"{place} FROM {text}").done()
        else:
            log = self._log.step(f"{place} FROM {text}")
            try:
                state = await self._base_image(base, text, platform)
            except ImageError as error:
                log.failed(str(error))
                raise
            log.done()
        triggers = state.config.pop("OnBuild", None) or []
        if shell := state.config.get("Shell"):
            state.shell = list(shell)
        return state, [parse_instruction(trigger, base.line) for trigger in triggers]

    async def _base_image(self, base: Instruction, text: str, platform: str | None) -> Draft:
        if text == "scratch":
            return Draft.from_scratch(platform)
        return Draft.of(self._service, await self._image(base, text, platform, pull=self._pull))

    def _stage_called(self, name: str, before: int) -> int | None:
        for number, stage in enumerate(self._stages[:before]):
            if name.lower() == stage.name:
                return number
        return int(name) if name.isdigit() and int(name) < before else None

    async def _image(self, instruction: Instruction, name: str, platform: str | None, *, pull: bool = False) -> Image:
        try:
            found = None if platform or pull else self._service.resolve(name)
            return found or await self._service.pull(name, platform=platform)
        except ImageError as error:
            raise instruction.fail(str(error)) from None

    # instructions

    async def _execute(self, instruction: Instruction, state: Draft, number: int, log: StepLog) -> None:
        text = str(instruction)
        match instruction.name:
            case "RUN":
                await self._run(instruction, state, number, log)
            case "COPY" | "ADD":
                await self._copy(instruction, state, number, log)
            case "WORKDIR":
                await self._workdir(instruction, state, log)
            case "ARG":
                state.arguments |= self._declared(instruction, state.variables())
                state.note(text)
            case _:
                configure(instruction, state)
                state.note(text)

    async def _run(self, instruction: Instruction, state: Draft, number: int, log: StepLog) -> None:
        argv, script = _command(instruction, state)
        declared = [f"{key}={value}" for key, value in sorted(state.arguments.items())]
        names = {item.partition("=")[0] for item in state.env}
        env = [*state.env, *(item for item in declared if item.partition("=")[0] not in names)]
        cwd, user = state.config.get("WorkingDir", "") or "/", state.config.get("User", "")
        for flag, allowed in (("network", ("", "default", "none")), ("security", ("", "sandbox"))):
            if instruction.flag(flag) not in allowed:  # CVE-2024-23653: there is no way to ask for more
                raise instruction.fail(f"--{flag}={instruction.flag(flag)}: a build reaches no network and has no privileges")
        try:
            variables = state.variables()
            flags = instruction.all_flags("mount")
            wanted = [runmounts.parse(text, cwd, lambda text: expand(text, variables)) for text in flags]
        except ValueError as error:
            raise instruction.fail(str(error)) from None
        origins = {
            mount: await self._origin(instruction, mount.origin, number)
            for mount in wanted
            if mount.kind == "bind" or mount.origin
        }
        known_by: list[Any] = ["RUN", argv, env, cwd, user, script]
        for text, mount in zip(flags, wanted, strict=True):
            known_by += [text, await self._content_of(instruction, mount, origins[mount]) if mount.kind == "bind" else ""]

        async def act(root: Path) -> None:
            async with AsyncExitStack() as stack:
                held = [await self._hold(mount, origins.get(mount), stack) for mount in wanted]
                extra = [item for item in held if isinstance(item, StepMount)]
                if script:
                    folder = stack.enter_context(self._folder())
                    (folder / "script").write_text(script)
                    (folder / "script").chmod(0o755)
                    stack.callback((folder / "script").unlink)
                    extra.append(StepMount(argv[0], folder / "script", read_only=True))
                given = [item for item in held if isinstance(item, str) and item]
                code = await self._run_step(Step(root, argv, [*env, *given], cwd, user, log.line, extra))
            if code != 0:
                raise instruction.fail(f"it ended with exit code {code}")

        await self._layer(instruction, state, known_by, act, log)

    async def _content_of(self, instruction: Instruction, mount: RunMount, origin: _Origin) -> str:
        """What the build cache knows a bind mount's content by."""
        if origin.folder is None:
            return f"{origin.known_by} {mount.source}"
        with RootedTree(str(origin.folder)) as tree:
            try:
                return await asyncio.to_thread(copying.digest, tree, copying.find(tree, mount.source, origin.ignore))
            except (BuildError, OSError) as error:
                raise instruction.fail(str(error)) from None

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """An empty folder to mount things in, for the block. `steps.drop_steps` clears up after a crash."""
        folder = self._service.steps / f"mounts-{uuid.uuid4().hex}"
        folder.mkdir(parents=True, mode=0o700)
        try:
            yield folder
        finally:
            folder.rmdir()  # never its content: that may be a person's files, mounted

    async def _hold(self, mount: RunMount, origin: _Origin | None, stack: AsyncExitStack) -> StepMount | str:
        """Makes one mount's source, for as long as the stack is open. Returns the variable instead, for a secret that is one."""
        if mount.kind == "tmpfs":
            return StepMount(mount.target, None, size=mount.size, mode=0o1777)
        folder = stack.enter_context(self._folder())
        if mount.kind == "secret":
            return self._hold_secret(mount, folder, stack)
        if mount.kind == "cache":
            place, new = await stack.enter_async_context(
                self._service.caches.hold(mount.identity, mount.sharing, mount.mode, mount.uid, mount.gid)
            )
            tree = stack.enter_context(RootedTree(str(place)))
            if origin is not None and new:
                await self._copy_all(origin, mount.source, tree)
            # of the cache itself, a source is a path in it; where it was filled, it is all of it
            inside = "/" if origin is not None else mount.source
        else:
            assert origin is not None
            tree, inside = await self._bound(mount, origin, stack), mount.source
        # Held by a descriptor and a mount of our own: whoever exchanges the path afterwards, a step of another build that shares
        # the cache, changes nothing of what the runtime mounts (CVE-2024-23651).
        descriptor = tree.open(inside, os.O_PATH)
        try:
            return StepMount(mount.target, _pin(descriptor, folder, stack, read_only=mount.read_only), mount.read_only)
        finally:
            os.close(descriptor)

    async def _bound(self, mount: RunMount, origin: _Origin, stack: AsyncExitStack) -> RootedTree:
        """The tree that a bind mount shows. A context that is written to, or has files that a build does not see, is a copy."""
        if origin.folder is None or (mount.read_only and not origin.ignore):
            return await stack.enter_async_context(self._opened(origin))
        copy = self._service.steps / f"copy-{uuid.uuid4().hex}"
        copy.mkdir(parents=True, mode=0o700)
        stack.callback(remove_tree, copy)
        tree = stack.enter_context(RootedTree(str(copy)))
        await self._copy_all(origin, "/", tree)
        return tree

    async def _copy_all(self, origin: _Origin, path: str, target: RootedTree) -> None:
        async with self._opened(origin) as tree:
            sources = copying.find(tree, path, origin.ignore)
            await asyncio.to_thread(copying.copy, tree, sources, target, "/", copying.Ownership(), unpack_archives=False)

    def _hold_secret(self, mount: RunMount, folder: Path, stack: AsyncExitStack) -> StepMount | str:
        value = self._secrets.get(mount.identity)
        if value is None:
            if mount.required:
                raise BuildError(f"the secret {mount.identity!r} was not given: build with --secret id={mount.identity},src=FILE")
            return ""
        if not mount.target:
            return f"{mount.env}={value.decode(errors='surrogateescape')}"
        mounts.mount("tmpfs", str(folder), "tmpfs", mounts.NOSUID | mounts.NODEV | mounts.NOEXEC, "mode=700")  # never on a disk
        stack.callback(mounts.umount, str(folder), mounts.DETACH)
        file = folder / "secret"
        file.write_bytes(value)
        os.chown(file, mount.uid, mount.gid)
        file.chmod(mount.mode)
        return StepMount(mount.target, file, read_only=True)

    async def _workdir(self, instruction: Instruction, state: Draft, log: StepLog) -> None:
        path = expanded(instruction, instruction.text, state.variables())
        state.config["WorkingDir"] = path = os.path.normpath(os.path.join("/", state.config.get("WorkingDir", ""), path))

        async def act(root: Path) -> None:
            with RootedTree(str(root)) as tree:
                copying.make_directory(tree, path)

        await self._layer(instruction, state, ["WORKDIR", path], act, log, keep_empty=False)

    async def _copy(self, instruction: Instruction, state: Draft, number: int, log: StepLog) -> None:
        *patterns, destination = self._copied(instruction, state)
        documents = {document.operator.replace('"', "").replace("'", ""): document for document in instruction.documents}
        for pattern in patterns:
            if "://" in pattern or pattern.startswith("git@"):
                raise instruction.fail("a build reaches no network: put the file into the context")
        destination = _destination(destination, state.config.get("WorkingDir", ""))
        origin = await self._origin(instruction, _from(instruction, {**self._globals, **state.variables()}), number)
        chown = expanded(instruction, instruction.flag("chown"), state.variables())
        mode = _mode(instruction)
        # A layer that does not depend on those below it: the names of users are looked up in them, so it needs numbers.
        alone = instruction.switch("link") and not re.search(r"[^0-9:]", chown)
        async with AsyncExitStack() as stack:
            context = await stack.enter_async_context(self._opened(origin))
            written = stack.enter_context(self._written(instruction, list(documents.values()), state))
            try:
                sources = []
                for pattern in patterns:
                    if document := documents.get(pattern):
                        sources += [(written, source) for source in copying.find(written, document.name, Ignore())]
                    else:
                        sources += [(context, source) for source in copying.find(context, pattern, origin.ignore)]
                digests = [await asyncio.to_thread(copying.digest, tree, [source]) for tree, source in sources]
            except (BuildError, OSError) as error:
                raise instruction.fail(str(error)) from None
            content = hashlib.sha256("".join(digests).encode()).hexdigest()
            made: list[str] = []

            def write(root: Path) -> None:
                with RootedTree(str(root)) as tree:
                    owner = _owner(tree, chown, mode)
                    unpack = instruction.name == "ADD"
                    several = len(sources) > 1
                    for where, source in sources:
                        made.extend(
                            copying.copy(where, [source], tree, destination, owner, unpack_archives=unpack, several=several)
                        )

            async def act(root: Path) -> None:
                await asyncio.to_thread(write, root)

            known_by = [instruction.name, content, destination, chown, mode, alone]
            await self._layer(instruction, state, known_by, act, log, alone=alone, without=made if alone and not chown else ())

    def _copied(self, instruction: Instruction, state: Draft) -> list[str]:
        listed = instruction.exec_form()
        variables = state.variables()
        found = [expanded(instruction, item, variables) for item in listed] if listed else words_of(instruction, variables)
        if len(found) < 2:
            raise instruction.fail("write the files, and then where they go")
        return found

    @contextmanager
    def _written(self, instruction: Instruction, documents: Sequence[HereDocument], state: Draft) -> Iterator[RootedTree]:
        """A folder with here-documents as files, for the block."""
        folder = self._service.steps / f"copy-{uuid.uuid4().hex}"
        folder.mkdir(parents=True, mode=0o700)
        try:
            for document in documents:
                try:
                    text = expand_document(document.text, state.variables()) if document.expand else document.text
                except ValueError as error:
                    raise instruction.fail(str(error)) from None
                (folder / document.name).write_text(text)
                (folder / document.name).chmod(0o644)
            with RootedTree(str(folder)) as tree:
                yield tree
        finally:
            remove_tree(folder)

    async def _origin(self, instruction: Instruction, name: str, number: int) -> _Origin:
        """What a name stands for: the context, another one, a stage or an image."""
        if not name:
            return _Origin(self._context, self._ignore)
        if name in self._contexts:
            return _Origin(self._contexts[name])
        earlier = self._stage_called(name, number)
        if earlier is not None:
            other = await self._stage(earlier)
            return _Origin(layers=other.layers, diff_ids=other.diff_ids)
        image = await self._image(instruction, name, None)
        layers = layers_of(self._service.content.document(image.manifest.digest), name)
        return _Origin(layers=layers, diff_ids=image.diff_ids)

    @asynccontextmanager
    async def _opened(self, origin: _Origin) -> AsyncIterator[RootedTree]:
        if origin.folder is not None:
            with RootedTree(str(origin.folder)) as tree:
                yield tree
        else:
            async with self._service.mounted(origin.layers, origin.diff_ids) as (root, _):
                with RootedTree(str(root)) as tree:
                    yield tree

    async def _layer(
        self,
        instruction: Instruction,
        state: Draft,
        known_by: Sequence[Any],
        act: Callable[[Path], Awaitable[None]],
        log: StepLog,
        *,
        keep_empty: bool = True,
        alone: bool = False,
        without: Sequence[str] = (),
    ) -> None:
        """Adds the layer of what `act` does to a mounted root, or the one that it gave before.

        alone: the root is an empty one. without: directories that the layer leaves to those below it; read after `act`.
        """
        text = str(instruction)
        layers, diff_ids = ([], []) if alone else (state.layers, state.diff_ids)
        material = json.dumps(["" if alone else state.chain, known_by, self._epoch]).encode()
        key = hashlib.sha256(material).hexdigest()
        cached = self._service.metadata.cached_step(key) if self._use_cache else None
        if cached and self._service.content.has(cached.layer.digest):
            log.cached()
            state.add(cached, text)
            return
        try:
            async with self._at_once, self._service.mounted(layers, diff_ids) as (root, rootfs):
                await act(root)
                left_out = [path.strip("/") for path in without]
                step = await pack(self._service, rootfs.upper, epoch=self._epoch, without=left_out, keep_empty=keep_empty)
        except (ImageError, OSError) as error:
            failure = instruction.fail(str(error)) if not str(error).startswith("line ") else error
            raise (StorageFailed(str(failure)) if is_of_disk(error) else failure) from None
        if step is None:
            state.note(text)
            return
        self._service.metadata.cache_step(key, step, {"instruction": text})
        state.add(step, text)


def _pin(descriptor: int, folder: Path, stack: AsyncExitStack, *, read_only: bool) -> Path:
    """Mounts what a descriptor stands for in a folder, until the stack closes. Returns the path."""
    tree = mounts.copy_tree(descriptor, "", recursive=False)
    try:
        flags = mounts.NOSUID | mounts.NODEV | (mounts.RDONLY if read_only else 0)  # MOUNT_ATTR_* have the same numbers
        syscalls.mount_setattr(tree, recursive=False, set_=flags)
        place = folder / "source"
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            place.mkdir()
            stack.callback(place.rmdir)
        else:
            place.touch()
            stack.callback(place.unlink)
        onto = os.open(place, os.O_PATH | os.O_CLOEXEC)
        try:
            mounts.move(tree, onto)
        finally:
            os.close(onto)
        stack.callback(mounts.umount, str(place), mounts.DETACH)
        return place
    finally:
        os.close(tree)


def _command(instruction: Instruction, state: Draft) -> tuple[list[str], str]:
    """The command of a RUN, and the script that it runs, where a here-document with a `#!` line is all of it."""
    listed = instruction.exec_form()
    if listed is not None:
        return listed, ""
    documents = instruction.documents
    if not documents:
        return [*state.shell, instruction.text], ""
    if len(documents) == 1 and instruction.text == documents[0].operator:
        if documents[0].text.startswith("#!"):
            return [f"{_SCRIPTS}/{documents[0].name}"], documents[0].text
        return [*state.shell, documents[0].text], ""
    return [*state.shell, "\n".join([instruction.text, "".join(document.raw for document in documents)])], ""


def _from(instruction: Instruction, variables: Mapping[str, str]) -> str:
    return expanded(instruction, instruction.flag("from"), variables)


def _destination(path: str, working_dir: str) -> str:
    whole = os.path.normpath(os.path.join("/", working_dir, path))
    return whole.rstrip("/") + "/" if path.endswith(("/", "/.")) or path == "." else whole


def _mode(instruction: Instruction) -> int | None:
    text = instruction.flag("chmod")
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
