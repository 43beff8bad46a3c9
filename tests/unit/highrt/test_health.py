"""What a health check is, from an image's configuration that may be anything."""

from typing import Any

import pytest

from highrt.person.health import Check
from highrt.pods.errors import InvalidArgument


def test_both_forms_of_a_command_and_none() -> None:
    assert Check.of({}) is None
    assert Check.of({"Test": ["NONE"]}) is None
    assert Check.of({"Test": ["CMD", "a", "b"], "Retries": 5}) == Check(["a", "b"], retries=5)
    assert Check.of({"Test": ["CMD-SHELL", "a b"], "Interval": 10**9}) == Check(["/bin/sh", "-c", "a b"], interval_ns=10**9)


@pytest.mark.parametrize(
    "configured",
    [{"Test": ["CMD"]}, {"Test": ["RUN", "x"]}, {"Test": "CMD x"}, {"Test": [1]}, {"Test": {"a": 1}},
     {"Test": ["CMD", "a"], "Interval": "soon"}, {"Test": ["CMD", "a"], "Timeout": -1}, {"Test": ["CMD", "a"], "Retries": [3]}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(configured: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="health check"):
        Check.of(configured)
