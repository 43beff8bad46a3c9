"""The ground that all layers of Strata stand on: the kernel's doors (`strata.linux`), the wire protocols
(`strata.protocols`), what client-go is to Go (`strata.kubeclient`), and logs and spans (`strata.telemetry`).

There is no policy in here, and nothing here imports a layer. `linux`, `protocols` and `telemetry` stand alone;
`kubeclient` may stand on them. What several layers need gets a named room here, never a `utils`.
"""
