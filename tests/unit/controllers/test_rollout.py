"""The numbers of a rolling update."""

from typing import Any

import pytest

from controlplane.controllers import rollout
from controlplane.controllers.rollout import Limits

Object = dict[str, Any]


def replica_set(uid: str, wanted: int, available: int | None = None) -> Object:
    count = wanted if available is None else available
    return {"metadata": {"uid": uid}, "spec": {"replicas": wanted}, "status": {"availableReplicas": count}}


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "expected"),
    [
        (4, "25%", "25%", (4, 1, 1)),
        (3, "25%", "25%", (3, 1, 0)),
        (10, "30%", "10%", (10, 3, 1)),
        (5, 0, 0, (5, 0, 1)),
        (2, 1, 5, (2, 1, 2)),
    ],
)
def test_percentages(replicas: int, surge: Any, unavailable: Any, expected: tuple[int, int, int]) -> None:
    spec = {"replicas": replicas, "strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}
    assert Limits.of(spec) == Limits(*expected)


@pytest.mark.parametrize("replicas", [1, 2, 3, 7, 10])
@pytest.mark.parametrize(("surge", "unavailable"), [(1, 0), (0, 1), (2, 1), (1, 3), (100, 100)])
def test_an_update_keeps_its_limits_at_each_step_and_ends(replicas: int, surge: int, unavailable: int) -> None:
    strategy = {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    limits = Limits.of({"replicas": replicas, "strategy": strategy})
    new, old = replica_set("new", 0), replica_set("old", replicas)
    for _ in range(4 * replicas + 4):
        new["spec"]["replicas"] = rollout.new_size(limits, new, [old])
        assert rollout.wanted(new) + rollout.wanted(old) <= limits.most
        old["spec"]["replicas"] = rollout.old_sizes(limits, new, [old])["old"]
        old["status"]["availableReplicas"] = rollout.wanted(old)
        assert rollout.available(new) + rollout.available(old) >= limits.least_available
        new["status"]["availableReplicas"] = min(rollout.wanted(new), rollout.available(new) + 1)
    assert (rollout.wanted(new), rollout.wanted(old)) == (replicas, 0)


def test_pods_that_are_not_available_anyhow_go_first() -> None:
    limits = Limits(4, 1, 1)
    olds = [replica_set("broken", 2, 0), replica_set("good", 2)]
    assert rollout.old_sizes(limits, replica_set("new", 1, 0), olds) == {"broken": 1, "good": 2}


def test_new_pods_that_do_not_come_up_stop_the_update() -> None:
    limits = Limits(4, 1, 1)
    olds = [replica_set("old", 3)]
    assert rollout.new_size(limits, replica_set("new", 2, 0), olds) == 2
    assert rollout.old_sizes(limits, replica_set("new", 2, 0), olds) == {"old": 3}


def test_a_change_of_size_in_the_middle_is_shared_out() -> None:
    sizes = rollout.proportional_sizes(Limits(20, 2, 2), [replica_set("old", 8), replica_set("new", 4)], {"old": 12, "new": 12})
    assert sizes == {"old": 15, "new": 7}
    assert sum(rollout.proportional_sizes(Limits(4, 1, 1), [replica_set("old", 8), replica_set("new", 4)], {}).values()) == 5
