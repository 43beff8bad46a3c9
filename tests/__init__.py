"""The tests: `unit` (fast, no root), `integration` (root, real namespaces and cgroups), `interop` (real peers),
`stack` (scripts/up and kubectl, end to end), and last, whether the machine is as clean as before (`machine`)."""
