"""Exec, attach and port-forward: the streams between a client far away and a container's process.

`server` listens on loopback for the URLs that CRI's Exec, Attach and PortForward give out; `relay` joins a client, on
whatever wire, with the pipes of a command in a container.
"""
