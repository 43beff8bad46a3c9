"""highrt: the container daemon. It pulls images, makes pods of containers from them, and speaks CRI to a kubelet.

`images` has what containers are made of, `pods` what they are, `cni` their network. The runtime's work is done by a pod's
`monitor`, forked from the `spawner`, so that containers outlive the daemon and no interpreter is started for them. `cri` and
`streaming` are the door for kubelets, `person` and `cli` the one for people.
"""
