"""The kernel's doors: thin, typed, one file a concern, and no policy.

Whoever makes containers (lowrt), counts them (highrt, kubelet) or wires them (nodenet) goes through here. Standard library
only, and little of it: lowrt's cold start pays for every import, so nothing here imports re, json, socket or subprocess.
Calls that the standard library lacks go through ctypes (`syscalls`), and every failure is an OSError with the kernel's code.
"""
