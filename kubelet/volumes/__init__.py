"""Volumes of pods: made before the pod's containers, kept fresh while it runs, taken away after it.

`manager` is the entry; `payload` gathers the files of ConfigMaps, Secrets, the downward API and projections, and `atomic`
writes them so that a container never sees half of an update; `directories` makes emptyDir and hostPath; `subpath` binds
one path of a volume without leaving it; `tokens` asks for service account tokens. Everything of a pod lies below
`ROOT/pods/UID`, so that a kubelet that was killed finds and frees it again.
"""
