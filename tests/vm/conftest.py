"""The tests of `inside` are for the machine that tests.vm boots, and are collected nowhere else."""

import os

collect_ignore = [] if os.environ.get("STRATA_VM") else ["inside"]
