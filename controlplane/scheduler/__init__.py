"""The scheduler: gives each pod that has no node the best one that fits.

It follows nodes and pods through `strata.kubeclient` and keeps in memory what each node has left (`cache`). A pod's turn
(`scheduler`) is: which nodes fit (`filters`, `affinity`), which of them is best (`scores`), then the binding, which is written
while the next pod has its turn already. A pod that fits nowhere waits in the queue (`queue`) until something changes.
"""
