"""The network of one node: CNI plugins, the Service proxy, the cluster's DNS, and routes to the other nodes' pods.

`cni` attaches pods: it is called by a container runtime, knows nothing of Kubernetes and talks netlink. The rest is one daemon,
`nodenet serve`, that follows a cluster's API: `proxy` turns Services into nftables rules, `dns` answers for the cluster's
domain, `routes` reaches the pods of other nodes, and `conflist` tells the runtime which addresses this node's pods get.
"""
