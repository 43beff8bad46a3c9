"""A CronJob's schedule and time zone (https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/#schedule-syntax)."""

import re
from zoneinfo import ZoneInfo

from controlplane.apiserver import fields
from controlplane.apiserver.validation.base import Errors

_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_MONTHS_AND_DAYS = re.compile(r"jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|sun|mon|tue|wed|thu|fri|sat", re.IGNORECASE)
_SCHEDULE_NAMES = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")


def cron_schedule(schedule: str, time_zone: str | None) -> Errors:
    """A CronJob's schedule (five fields, or one of the names) and its time zone."""
    errors: Errors = []
    if schedule not in _SCHEDULE_NAMES and not schedule.startswith("@every "):
        parts = schedule.split()
        if len(parts) != 5:
            text = f"expected exactly 5 fields, found {len(parts)}: {parts}"
            errors.append(fields.invalid("spec.schedule", schedule, text))
        elif bad := next((part for part, bounds in zip(parts, _RANGES, strict=True) if not _cron_field(part, bounds)), None):
            errors.append(fields.invalid("spec.schedule", schedule, f"failed to parse {bad!r}"))
    if time_zone is not None:
        try:
            ZoneInfo(time_zone)
        except (ValueError, OSError, KeyError):
            errors.append(fields.invalid("spec.timeZone", time_zone, f"unknown time zone {time_zone}"))
    return errors


def _cron_field(text: str, bounds: tuple[int, int]) -> bool:
    low, high = bounds
    for part in text.split(","):
        span, slash, step = part.partition("/")
        if slash and (not step.isdecimal() or not int(step)):
            return False
        if span in ("*", "?"):
            continue
        ends = span.split("-")
        if len(ends) > 2:
            return False
        for end in ends:
            if not _MONTHS_AND_DAYS.fullmatch(end) and not (end.isdecimal() and low <= int(end) <= high):
                return False
    return True
