"""The cluster's keys and certificates: a CA for the cluster and one for the front proxy, what they sign, and kubeconfigs.

`certificates` makes and checks single certificates, `authority.Authority` keeps the whole set of a control plane in a folder
and renews what is about to expire. Private keys are files of mode 0600 in a folder of mode 0700.
"""
