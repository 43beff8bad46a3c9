"""The Kubernetes control plane, small enough to read: a store, the API server in front of it, and the scheduler and
controllers, which reach state only through the API (`strata.kubeclient`), in a process of their own.

Entry points: `controlplane.cli` (the command), `controlplane.apiserver` and `controlplane.store`. May import `strata`;
nothing imports it.
"""
