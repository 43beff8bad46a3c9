"""`python -m kubelet`: the same as the command."""

from kubelet.cli import main

main()
