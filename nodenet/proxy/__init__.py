"""The Service proxy: Services and EndpointSlices as nftables rules of this node.

`model` reads the API's objects, `fragment` turns one Service into rules, `ruleset` puts them together and says what has to change
in the kernel, `proxy` does it when something has changed. https://kubernetes.io/docs/reference/networking/virtual-ips/
"""
