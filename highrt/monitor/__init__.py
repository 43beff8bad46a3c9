"""The monitor: one small process a pod, which holds what must outlive the daemon.

It is the parent of the pod's containers, reaps them, writes their logs and exit records, owns their terminals, and does
what highrt asks over a socket (`wire`). It is forked from the spawner with everything imported, and imports nothing
afterwards: an upgrade may replace the files under it. `client` is highrt's side; everything else runs in the monitor.
"""
