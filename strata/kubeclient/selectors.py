"""Label and field selectors, as text (`app=web,tier in (a,b),!old`) and as the API's LabelSelector.

https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_REQUIREMENT = re.compile(
    r"""\s*(?:
        (?P<not>!)\s*(?P<absent>[\w./-]+)
      | (?P<key>[\w./-]+)\s*(?:
            (?P<setop>in|notin)\s*\((?P<values>[^()]*)\)
          | (?P<op>==|=|!=|>|<)\s*(?P<value>[\w./-]*)
        )?
    )\s*(?:,|$)""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term. operator: in, notin, exists, absent, gt, lt."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "in":
                return value is not None and value in self.values
            case "notin":
                return value is None or value not in self.values
            case "exists":
                return value is not None
            case "absent":
                return value is None
        try:
            number, bound = int(value or ""), int(self.values[0])
        except ValueError:
            return False
        return number > bound if self.operator == "gt" else number < bound


@dataclass(frozen=True, slots=True)
class Selector:
    """All requirements must hold; without any, everything matches. `nothing` matches nothing."""

    requirements: tuple[Requirement, ...] = ()
    nothing: bool = False

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        return not self.nothing and all(r.matches(labels or {}) for r in self.requirements)

    def __bool__(self) -> bool:
        return self.nothing or bool(self.requirements)


EVERYTHING = Selector()
NOTHING = Selector(nothing=True)


def parse_label_selector(selector: str | Mapping[str, Any] | None) -> Selector:
    """A selector from its text, or from a LabelSelector object ({matchLabels, matchExpressions}; None selects nothing).

    Raises ValueError for text that is none, and for an unknown operator.
    """
    if selector is None:
        return NOTHING
    if isinstance(selector, str):
        return _parse_text(selector)
    requirements = [Requirement(k, "in", (str(v),)) for k, v in sorted((selector.get("matchLabels") or {}).items())]
    operators = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "absent", "Gt": "gt", "Lt": "lt"}
    for expression in selector.get("matchExpressions") or ():
        operator = operators.get(expression.get("operator", ""))
        if operator is None:
            raise ValueError(f"{expression.get('operator')!r} is not a valid label selector operator")
        requirements.append(Requirement(expression["key"], operator, tuple(expression.get("values") or ())))
    return Selector(tuple(requirements))


def _parse_text(text: str) -> Selector:
    requirements, position = [], 0
    text = text.strip()
    while position < len(text):
        match = _REQUIREMENT.match(text, position)
        if not match or match.end() == position:
            raise ValueError(f"unable to parse requirement: {text[position:]!r}")
        position = match.end()
        key = match["key"]
        if match["not"]:
            requirements.append(Requirement(match["absent"], "absent"))
        elif match["setop"]:
            values = tuple(value.strip() for value in match["values"].split(","))
            requirements.append(Requirement(key, match["setop"], values))
        elif match["op"]:
            operator = {"=": "in", "==": "in", "!=": "notin", ">": "gt", "<": "lt"}[match["op"]]
            requirements.append(Requirement(key, operator, (match["value"],)))
        else:
            requirements.append(Requirement(key, "exists"))
    return Selector(tuple(requirements))


def parse_field_selector(text: str) -> Selector:
    """A field selector (`status.phase!=Running,spec.nodeName=n`): only =, == and != are allowed. Raises ValueError."""
    requirements = []
    for term in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([\w./-]+)\s*(==|!=|=)\s*(.*)", term)
        if not match:
            raise ValueError(f"invalid field selector: {term!r}; use FIELD=VALUE or FIELD!=VALUE")
        requirements.append(Requirement(match[1], "notin" if match[2] == "!=" else "in", (match[3],)))
    return Selector(tuple(requirements))
