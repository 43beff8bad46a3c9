"""The command `highrt`: images and containers for a person, in the verbs and flags of docker, podman and nerdctl.

`main` has the command group; `serve` is the daemon's; everything else is a client of `strata.highrt.v1`.
"""
