"""GVariant's text format, in which people write a D-Bus value with its type: uint64 5, 'word', ['a', 'b'], @au [1, 2].

https://docs.gtk.org/glib/gvariant-text-format.html
"""

from strata.linux.cgroups.dbus import split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_WORDS = {"boolean": "b", "byte": "y", "int16": "n", "uint16": "q", "int32": "i", "uint32": "u", "int64": "x", "uint64": "t",
          "double": "d", "string": "s", "objectpath": "o", "signature": "g"}  # fmt: skip
_RANGES = {"y": (0, 2**8), "n": (-(2**15), 2**15), "q": (0, 2**16), "i": (-(2**31), 2**31), "u": (0, 2**32),
           "x": (-(2**63), 2**63), "t": (0, 2**64)}  # fmt: skip
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\n": ""}
_PAIRS = {"[": "]", "(": ")", "{": "}", "<": ">"}


def parse(text: str) -> "tuple[str, Any]":
    """A variant: (signature, value). Raises ValueError."""
    parser = _Parser(text)
    try:
        node = parser.node()
        parser.end()
        signature = node.infer()
        return signature, node.value(signature)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class _Node:
    """A value whose type may not be known yet. kind: number, string, bool, bytes, or the bracket that it begins with."""

    def __init__(self, kind: str, content: "Any", signature: str = "") -> None:
        self.kind, self.content, self.signature = kind, content, signature

    def infer(self) -> str:
        """Its own type, or the one that it has by default."""
        if self.signature:
            return self.signature
        if self.kind == "number":
            decimal = not self.content.lower().lstrip("+-").startswith("0x")
            return "d" if decimal and any(letter in self.content for letter in ".eE") else "i"
        if self.kind in ("[", "{"):
            if not self.content:
                raise ValueError("the type of an empty list cannot be told: write it before it, like @as []")
            typed = next((item for item in self.content if item.is_typed()), self.content[0])
            return f"a{typed.infer()}"
        if self.kind in ("(", ":"):
            inside = "".join(item.infer() for item in self.content)
            return f"({inside})" if self.kind == "(" else f"{{{inside}}}"
        return {"string": "s", "bool": "b", "bytes": "ay", "<": "v"}[self.kind]

    def is_typed(self) -> bool:
        return bool(self.signature) or (self.kind in "[{(:" and any(item.is_typed() for item in self.content))

    def value(self, wanted: str) -> "Any":
        """Its value as one of that type. Raises ValueError where it is none."""
        fits = not self.signature or self.signature == wanted
        if fits and self.kind == "number" and wanted in _RANGES:
            number, (low, high) = _integer(self.content), _RANGES[wanted]
            if low <= number < high:
                return number
        elif fits and self.kind == "number" and wanted == "d":
            return float(self.content)
        elif fits and wanted in {"string": ("s", "o", "g"), "bool": ("b",), "bytes": ("ay",)}.get(self.kind, ()):
            return self.content
        elif fits and self.kind == "<" and wanted == "v":
            signature = self.content.infer()
            return signature, self.content.value(signature)
        elif fits and self.kind in ("[", "{") and wanted[0] == "a" and (self.kind == "{") == (wanted[1:2] == "{"):
            return [item.value(wanted[1:]) for item in self.content]
        elif fits and self.kind in ("(", ":") and wanted[0] == ("(" if self.kind == "(" else "{"):
            return tuple(item.value(one) for item, one in zip(self.content, split(wanted[1:-1]), strict=True))
        raise ValueError(f"{self.content!r} is no value of the type {wanted!r}")


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._place = text, 0

    def node(self, signature: str = "") -> _Node:
        letter = self._next()
        if letter == "@" and not signature:
            self._place += 1
            annotation = self._word("abdginoqstuvxy(){}")
            if len(split(annotation)) != 1:
                raise ValueError(f"@{annotation}: not one type")
            return self.node(annotation)
        if letter in "[(<{":
            return _Node(letter, self._inside(letter), signature)
        if letter in "'\"":
            return _Node("string", self._string(), signature)
        if letter == "b" and self._text[self._place + 1 : self._place + 2] in ("'", '"'):
            self._place += 1
            return _Node("bytes", self._string().encode() + b"\0", signature)
        if letter in "+-.0123456789":
            return _Node("number", self._word("+-.0123456789abcdefxABCDEFX"), signature)
        word = self._word("abcdefghijklmnopqrstuvwxyz0123456789")
        if word in ("true", "false"):
            return _Node("bool", word == "true", signature)
        if word in _WORDS and not signature:
            return self.node(_WORDS[word])
        raise ValueError(f"{self._text!r}: unexpected {word or letter!r}")

    def end(self) -> None:
        if self._place < len(self._text.rstrip()):
            raise ValueError(f"{self._text!r}: unexpected {self._text[self._place :]!r}")

    def _inside(self, opening: str) -> "Any":
        self._place += 1
        closing = _PAIRS[opening]
        if opening == "<":
            inner = self.node()
            self._expect(closing)
            return inner
        found: list[_Node] = []
        while self._next() != closing:
            if found:
                self._expect(",")
                if self._next() == closing and opening == "(":
                    break
            found.append(self.node())
            if opening == "{":
                self._expect(":")
                found[-1] = _Node(":", [found[-1], self.node()])
        self._place += 1
        return found

    def _next(self) -> str:
        while self._text[self._place : self._place + 1].isspace():
            self._place += 1
        if self._place >= len(self._text):
            raise ValueError(f"{self._text!r} ends too early")
        return self._text[self._place]

    def _expect(self, letter: str) -> None:
        if self._next() != letter:
            raise ValueError(f"{self._text!r}: {letter!r} expected before {self._text[self._place :]!r}")
        self._place += 1

    def _word(self, letters: str) -> str:
        start = self._place
        while self._text[self._place : self._place + 1] and self._text[self._place] in letters:
            self._place += 1
        return self._text[start : self._place]

    def _string(self) -> str:
        quote, found = self._text[self._place], ""
        self._place += 1
        while (letter := self._text[self._place : self._place + 1]) != quote:
            if not letter:
                raise ValueError(f"{self._text!r}: a string without an end")
            if letter == "\0":
                raise ValueError(f"{self._text!r}: a string cannot have a NUL")
            self._place += 1
            if letter == "\\":
                letter = self._text[self._place : self._place + 1]
                self._place += 1
                if letter in ("u", "U"):
                    digits = self._text[self._place : self._place + (4 if letter == "u" else 8)]
                    self._place += len(digits)
                    code = int(digits, 16)
                    if not (0 < code < 0xD800 or 0xDFFF < code < 0x110000):
                        raise ValueError(f"{self._text!r}: no character has the number {digits}")
                    letter = chr(code)
                else:
                    letter = _ESCAPES.get(letter, letter)
            found += letter
        self._place += 1
        return found


def _integer(text: str) -> int:
    """As C writes integers: 0x1f is hexadecimal, 017 octal."""
    sign, digits = (-1 if text[:1] == "-" else 1), text.lstrip("+-")
    if digits.lower().startswith("0x"):
        return sign * int(digits, 16)
    return sign * int(digits, 8 if digits.startswith("0") and len(digits) > 1 else 10)
