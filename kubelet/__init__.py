"""The node agent: it makes the pods that the API server assigned to this node run, through CRI alone.

`cli` is what a person types (`join`, `run`); `agent` wires one process together. `pods` turns the API's pods into one
worker each; a worker (`worker`) compares what the pod asks with what the runtime has (`actions`, pure) and does the
difference: sandbox, volumes (`volumes/`), containers (`containers`), probes (`probes`), and writes the pod's status
(`status`, pure; `statuswriter`). `node` keeps the Node object and its lease, `server` answers the API server on port 10250.
Nothing about a pod is kept on disk but its volumes: a kubelet that was killed finds its pods again through CRI's labels.

May import `strata` (linux, protocols, telemetry, kubeclient), no other layer.
"""

VERSION = "v1.36.0+strata.0.1.0"
"""What Node.status.nodeInfo.kubeletVersion says: the Kubernetes version whose node API this is, and ours."""
