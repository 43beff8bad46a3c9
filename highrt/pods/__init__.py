"""Pods and containers as the daemon knows them: `manager.PodManager` is the core that CRI and the person's API call.

`model` has the types, `metadata` what survives (SQLite), `spec` turns CRI's configuration into the OCI runtime's, `sandbox`
makes what a pod's containers share, `recovery` finds everything again after a restart. Below are the monitors
(`highrt.monitor`), the spawner (`highrt.spawner`), the network (`highrt.cni`) and the images (`highrt.images`).
"""
