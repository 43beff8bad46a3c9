"""Logs and spans: one way for all daemons.

`logs` sets up a daemon's log (readable in a terminal, JSON lines on request; every line about a pod or container
carries its UID or ID). `spans` writes OpenTelemetry-shaped spans as JSON lines, off by default, so that one pod can
be followed from the API write to the system call. `spans` imports almost nothing: lowrt's hot path may use it.
"""
