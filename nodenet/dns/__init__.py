"""The cluster's DNS, answered on every node (Kubernetes DNS-Based Service Discovery, specification 1.1.0).

`records` knows the names, out of the informers' memory; `answers` makes messages of them; `server` has the sockets; `forward`
asks the node's own servers for everything else. The address that pods are told, that of the Service kube-dns, is a local
address of each node: a query never leaves its node and needs no address translation.
"""
