"""The Containerfile language: from text to instructions, with their line numbers (the Dockerfile reference is its definition)."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from highrt.images.errors import BuildError

_FLAG = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?(?:\s+|$)")
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z]+)\s*=\s*(.*?)\s*$")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HERE = re.compile(
    r"""(?P<operator>\d*<<(?P<strip>-?)(?P<quote>["']?)(?P<name>[A-Za-z_][\w.-]*)(?P=quote))"""
    r"""|"(?:\\.|[^"\\])*"|'[^']*'|\\."""  # what is quoted begins no here-document
)
_TAKES_DOCUMENTS = ("RUN", "COPY", "ADD")
_FLAGS: dict[str, set[str]] = {
    "FROM": {"platform"},
    "COPY": {"from", "chown", "chmod", "link"},
    "ADD": {"chown", "chmod", "link"},
    "RUN": {"mount", "network", "security"},
    "HEALTHCHECK": {"interval", "timeout", "start-period", "start-interval", "retries"},
}
_KNOWN = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD", "RUN",
    "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip


@dataclass(frozen=True)
class HereDocument:
    """`<<NAME`, the lines after it and a line NAME. text: those lines, without their leading tabs where it is `<<-NAME`; raw: as
    they are in the file, with the last line, for a shell to read. expand: the name was not quoted, so variables are replaced."""

    operator: str
    name: str
    text: str
    raw: str
    expand: bool


@dataclass(frozen=True)
class Instruction:
    """One instruction. text: what follows its name and flags, continued lines joined. flags: (name, value) in their order."""

    line: int
    name: str
    text: str
    flags: tuple[tuple[str, str], ...] = ()
    documents: tuple[HereDocument, ...] = ()

    def flag(self, name: str) -> str:
        """The value of a flag, the last one where it is given several times; "" where it is not there."""
        return next((value for flag, value in reversed(self.flags) if flag == name), "")

    def all_flags(self, name: str) -> list[str]:
        """The values of a flag that may be repeated."""
        return [value for flag, value in self.flags if flag == name]

    def switch(self, name: str) -> bool:
        """Whether a flag is on: `--link` or `--link=true`. Raises BuildError."""
        value = next((value for flag, value in reversed(self.flags) if flag == name), "false")
        if value.lower() not in ("", "true", "false", "1", "0"):
            raise self.fail(f"--{name}={value} is neither true nor false")
        return value.lower() in ("", "true", "1")

    def fail(self, why: str) -> BuildError:
        """An error that names the place."""
        return BuildError(f"line {self.line}: {self}: {why}")

    def __str__(self) -> str:
        """As it is shown to people: on one line."""
        flags = [f"--{name}={value}" if value else f"--{name}" for name, value in self.flags]
        return " ".join([self.name, *flags, *self.text.split()])

    def exec_form(self) -> list[str] | None:
        """The list, where it is written as a JSON list of texts."""
        if not self.text.startswith("["):
            return None
        try:
            value = json.loads(self.text)
        except ValueError:
            return None
        return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


@dataclass
class Stage:
    """FROM and what follows it, up to the next FROM."""

    base: Instruction
    name: str
    instructions: list[Instruction] = field(default_factory=list)


def parse(text: str) -> tuple[list[Instruction], list[Stage]]:
    """The ARGs before the first FROM, and the stages. Raises BuildError with the line."""
    arguments: list[Instruction] = []
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.name == "FROM":
            words = instruction.text.split()
            if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
                raise instruction.fail("write FROM IMAGE, or FROM IMAGE AS NAME")
            stages.append(Stage(instruction, words[2].lower() if len(words) == 3 else ""))
        elif stages:
            stages[-1].instructions.append(instruction)
        elif instruction.name == "ARG":
            arguments.append(instruction)
        else:
            raise instruction.fail("only ARG may come before the first FROM")
    if not stages:
        raise BuildError("the Containerfile has no FROM (FROM scratch begins with an empty root)")
    return arguments, stages


def _instructions(text: str) -> list[Instruction]:
    escape = _escape(text)
    found: list[Instruction] = []
    start = 0
    parts: list[str] = []
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue  # also between continued lines
        if not parts:
            start = number
        if stripped.endswith(escape):
            parts.append((line if parts else line.lstrip()).rstrip()[: -len(escape)])
            continue
        parts.append(line.rstrip() if parts else line.strip())
        found.append(parse_instruction("".join(parts), start, lines))
        parts = []
    if parts:
        found.append(parse_instruction("".join(parts), start))
    return found


def _documents(line: int, text: str, lines: Iterator[tuple[int, str]]) -> tuple[HereDocument, ...]:
    """Reads the here-documents that a line begins, one after the other, from the lines after it."""
    found = []
    for match in _HERE.finditer(text):
        name = match["name"]
        if name is None:
            continue
        raw: list[str] = []
        for _, content in lines:
            if (content.lstrip("\t") if match["strip"] else content) == name:
                break
            raw.append(content)
        else:
            raise BuildError(f"line {line}: the here-document {name} has no end: a line that says just {name}")
        kept = [content.lstrip("\t") for content in raw] if match["strip"] else raw
        whole = "".join(f"{content}\n" for content in kept)
        ended = "".join(f"{content}\n" for content in (*raw, name))
        found.append(HereDocument(match["operator"], name, whole, ended, not match["quote"]))
    return tuple(found)


def _escape(text: str) -> str:
    """The line continuation character: a directive on the first lines may change it."""
    for line in text.splitlines():
        directive = _DIRECTIVE.match(line.strip())
        if not directive:
            break
        if directive[1].lower() == "escape" and directive[2] in ("\\", "`"):
            return directive[2]
    return "\\"


def parse_instruction(text: str, line: int, lines: Iterator[tuple[int, str]] | None = None) -> Instruction:
    """The instruction on one (joined) line. lines: those after it, where its here-documents are. Raises BuildError."""
    name, _, rest = text.strip().partition(" ")
    if "\t" in name:
        name, _, rest = text.strip().partition("\t")
    name, rest = name.upper(), rest.strip()
    if name not in _KNOWN:
        raise BuildError(f"line {line}: {name} is not an instruction that highrt builds; it knows {', '.join(sorted(_KNOWN))}")
    if not rest:
        raise BuildError(f"line {line}: {name} needs an argument")
    documents = _documents(line, rest, lines or iter(())) if name in _TAKES_DOCUMENTS else ()
    flags: list[tuple[str, str]] = []
    if name in _FLAGS:
        while match := _FLAG.match(rest):
            if match[1] not in _FLAGS[name]:
                raise BuildError(f"line {line}: {name} --{match[1]} is not supported")
            flags.append((match[1], match[2] or ""))
            rest = rest[match.end() :]
    found = Instruction(line, name, rest, tuple(flags), documents)
    if name == "ONBUILD":
        trigger = rest.split(None, 1)[0].upper()
        if trigger in ("ONBUILD", "FROM", "MAINTAINER"):
            raise found.fail(f"{trigger} cannot be a trigger")
        parse_instruction(rest, line)
    return found


def words(text: str, variables: Mapping[str, str]) -> list[str]:
    """Splits at unquoted blanks, takes quotes away and replaces variables. Raises ValueError with the reason."""
    return _Lexer(text, variables).words()


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replaces variables and takes quotes away; blanks stay. Raises ValueError with the reason."""
    return _Lexer(text, variables).word(split=False)


def expand_document(text: str, variables: Mapping[str, str]) -> str:
    """Replaces variables as a shell does in a here-document: quotes are nothing special, and a backslash quotes a dollar sign or
    another backslash only. Raises ValueError with the reason."""
    return _Lexer(text, variables).document()


def pairs(text: str, variables: Mapping[str, str]) -> dict[str, str]:
    """`KEY=VALUE …`, or the older `KEY VALUE`, as in ENV and LABEL. Raises ValueError with the reason."""
    first = text.split(None, 1)
    if "=" not in first[0]:
        if len(first) != 2:
            raise ValueError("write KEY=VALUE")
        return {expand(first[0], variables): expand(first[1], variables)}
    found = {}
    for word in words(text, variables):
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"{word!r} is not KEY=VALUE")
        found[key] = value
    return found


class _Lexer:
    """The small part of the shell's word rules that Containerfiles have."""

    def __init__(self, text: str, variables: Mapping[str, str]) -> None:
        self._text, self._variables, self._at = text, variables, 0

    def words(self) -> list[str]:
        found: list[str] = []
        while True:
            while self._peek().isspace():
                self._at += 1
            if not self._peek():
                return found
            found.append(self.word(split=True))

    def word(self, *, split: bool) -> str:
        out = []
        while character := self._peek():
            if split and character.isspace():
                break
            self._at += 1
            if character == "'":
                out.append(self._until("'"))
            elif character == '"':
                out.append(self._double_quoted())
            elif character == "\\":
                out.append(self._next())
            elif character == "$":
                out.append(self._variable())
            else:
                out.append(character)
        return "".join(out)

    def document(self) -> str:
        out = []
        while character := self._next():
            if character == "\\" and self._peek() in ("$", "\\"):
                out.append(self._next())
            elif character == "$":
                out.append(self._variable())
            else:
                out.append(character)
        return "".join(out)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        character = self._peek()
        self._at += 1
        return character

    def _until(self, end: str) -> str:
        stop = self._text.find(end, self._at)
        if stop < 0:
            raise ValueError(f"a {end} is missing")
        found = self._text[self._at : stop]
        self._at = stop + 1
        return found

    def _double_quoted(self) -> str:
        out = []
        while (character := self._next()) != '"':
            if not character:
                raise ValueError('a " is missing')
            if character == "\\" and self._peek() in ('"', "\\", "$"):
                out.append(self._next())
            elif character == "$":
                out.append(self._variable())
            else:
                out.append(character)
        return "".join(out)

    def _variable(self) -> str:
        if self._peek() != "{":
            match = _NAME.match(self._text, self._at)
            if not match:
                return "$"
            self._at = match.end()
            return self._variables.get(match[0], "")
        self._at += 1
        match = _NAME.match(self._text, self._at)
        if not match:
            raise ValueError("${ must be followed by a variable's name")
        self._at = match.end()
        value = self._variables.get(match[0])
        operator = self._text[self._at : self._at + 2]
        if operator not in (":-", ":+"):
            if self._next() != "}":
                raise ValueError(f"${{{match[0]} has no closing brace, or an operator that is not :- or :+")
            return value or ""
        self._at += 2
        depth, start = 1, self._at
        while depth:
            character = self._next()
            if not character:
                raise ValueError(f"${{{match[0]} has no closing brace")
            depth += {"{": 1, "}": -1}.get(character, 0)
        other = expand(self._text[start : self._at - 1], self._variables)
        if operator == ":-":
            return value or other
        return other if value else ""
