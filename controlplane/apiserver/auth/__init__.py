"""Who asks (`authenticators`, `serviceaccounts`), and what they may (`rbac`, `nodes`, on the default roles of `policy`)."""
