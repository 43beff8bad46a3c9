"""A monitor without a spawner: `python -IS highrt/monitor/__main__.py --entry MODULE:FUNCTION --connection FD`.

highrt starts one like this while the spawner is being replaced. It costs what importing costs, and works the same.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))

from highrt.monitor import main
from highrt.spawner import loading

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
# The same as in the spawner: nothing is imported once containers run.
entry = loading.entry_point(arguments["--entry"], with_package=True)
main.prepare(rehearsed=False)
status = main.run(entry, int(arguments["--connection"]))
os._exit(status)
