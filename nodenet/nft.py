"""Transactions on the kernel's packet filter: the `nft` program with a script on its standard input.

A script is applied as a whole or not at all. Every value that goes into one has been through `ipaddress`, `int` or a hash:
nothing that a user wrote is pasted in.
"""

import json
import subprocess
from typing import Any

_SECONDS = 60


class NftError(Exception):
    """nft refused a script; the text is nft's own."""


def apply(script: str) -> None:
    """Applies a script atomically. Raises NftError."""
    _run("-f", "-", script=script)


def list_table(family: str, table: str) -> list[dict[str, Any]] | None:
    """A table's objects as libnftables-json(5) has them; None where there is no such table. Raises NftError."""
    try:
        output = _run("-j", "list", "table", family, table)
    except NftError as error:
        if "No such file or directory" in str(error):
            return None
        raise
    objects: list[dict[str, Any]] = json.loads(output)["nftables"]
    return objects


def has_table(family: str, table: str) -> bool:
    """Whether there is such a table. Raises NftError."""
    return f"table {family} {table}\n" in _run("list", "tables", family)


def delete_table(family: str, table: str) -> None:
    """Removes a table; nothing happens where there is none."""
    apply(f"add table {family} {table}\ndelete table {family} {table}\n")


def delete_element(table: str, name: str, element: str) -> None:
    """Removes an element of a set; nothing happens where there is none. table: family and name. Raises NftError."""
    try:
        apply(f"delete element {table} {name} {{ {element} }}\n")
    except NftError as error:
        if not any(text in str(error) for text in ("No such file or directory", "element does not exist")):
            raise


def _run(*arguments: str, script: str | None = None) -> str:
    try:
        done = subprocess.run(["nft", *arguments], input=script, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        raise NftError("the program nft is missing: install the package nftables") from None
    except subprocess.TimeoutExpired:
        raise NftError(f"nft did not end within {_SECONDS} s") from None
    if done.returncode:
        raise NftError(done.stderr.strip() or f"nft ended with status {done.returncode}")
    return done.stdout
