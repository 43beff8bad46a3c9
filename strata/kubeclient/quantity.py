"""Quantities (`100m`, `1.5Gi`, `12e6`) as exact numbers.

https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

import re
from decimal import ROUND_CEILING, Decimal

_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_FORM = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([A-Za-z]{0,2}))")


def parse_quantity(text: str | int | float) -> Decimal:
    """The number that a quantity stands for. Raises ValueError for text that is none."""
    match = _FORM.fullmatch(str(text).strip())
    if not match:
        raise ValueError(f"{text!r} is no quantity")
    number, exponent, suffix = Decimal(match[1]), match[2], match[3] or ""
    if exponent:
        return number.scaleb(int(exponent[1:]))
    if suffix in _BINARY:
        return number * Decimal(1024) ** _BINARY[suffix]
    if suffix in _DECIMAL:
        return number.scaleb(_DECIMAL[suffix])
    raise ValueError(f"{text!r} is no quantity: unknown suffix {suffix!r}")


def to_bytes(text: str | int | float) -> int:
    """A quantity of bytes, rounded up."""
    return int(parse_quantity(text).to_integral_value(ROUND_CEILING))


def to_milli(text: str | int | float) -> int:
    """A quantity in thousandths (of a CPU), rounded up."""
    return int((parse_quantity(text) * 1000).to_integral_value(ROUND_CEILING))
