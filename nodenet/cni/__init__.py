"""CNI plugins (https://www.cni.dev/docs/spec/, 1.1.0): bridge, host-local, portmap, loopback.

`main.run` is the whole interface: CNI's environment and standard input in, exit status and standard output out. The same
function serves an executable and a warm process that makes one call after another; between two calls it keeps nothing.
Nothing here imports the Kubernetes client: a plugin's start is part of a pod's start.
"""
