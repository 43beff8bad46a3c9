"""Where the daemon of the stack `default` is. Apart from `config`, because the commands need nothing else of the daemon."""

CNI_BIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni")
"""Where CNI's own releases put plugins, and where Debian's package does."""
DEFAULT_ADDRESS = "unix:///run/highrt/highrt.sock"
DEFAULT_LOG = "/var/lib/strata/default/log/highrt.log"
DEFAULT_ROOT = "/var/lib/strata/default/highrt"
DEFAULT_STATE = "/run/strata/default/highrt"
