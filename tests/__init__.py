"""The tests: `unit` (fast, no root), `integration` (root, real namespaces and cgroups), `interop` (real peers),
`stack` (scripts/up and kubectl, end to end), `vm` (in a booted machine, only when asked for), and last, whether the machine
is as clean as before (`machine`)."""
