"""`python -IS highrt/spawner/__main__.py --entry MODULE:FUNCTION --monitor MODULE:FUNCTION --socket FD`."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))

from highrt.spawner import main

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
main.run(arguments["--entry"], arguments["--monitor"], int(arguments["--socket"]))
os._exit(0)
