"""A person's containers and images: the API `strata.highrt.v1` beside CRI on the daemon's socket.

A container of a person's is a pod with one container, made from the flags of `highrt run`. Its names, hosts file, log and
volumes are kept here; the pod itself is the pod manager's, owned by `Owner.PERSON`, so that no kubelet sees it.
"""
