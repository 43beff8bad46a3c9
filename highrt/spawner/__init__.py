"""The spawner: a small process with one thread that has the runtime imported, and forks a monitor from itself for each pod.

Its heap is copied into every monitor, so it parses no requests and holds no more than what monitors need. `client` is
highrt's side.
"""
