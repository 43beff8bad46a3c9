"""Whether an object makes sense: what its schema cannot say, with the texts of Kubernetes' own validation.

`base` has the registry of validators and what they share; the other files register one a kind.
"""

from controlplane.apiserver.validation import cluster, services, workloads
from controlplane.apiserver.validation.base import (
    validate_create,
    validate_delete_options,
    validate_finalizers_update,
    validate_label,
    validate_metadata,
    validate_update,
)

__all__ = [
    "cluster",
    "services",
    "validate_create",
    "validate_delete_options",
    "validate_finalizers_update",
    "validate_label",
    "validate_metadata",
    "validate_update",
    "workloads",
]
