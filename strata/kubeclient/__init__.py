"""What client-go is to Go: everything that scheduler, controllers, kubelet and nodenet know of a cluster.

`client` speaks REST (TLS, tokens, watches), `resources` names the built-in resources, `informer` keeps a list in memory
from list and watch, `workqueue` and `backoff` are how controllers retry, `selectors` and `quantity` read what the API
writes as text. Objects are plain dicts as the schema has them; those from an informer are read-only.
"""
