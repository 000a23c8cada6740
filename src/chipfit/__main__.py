"""`python -m chipfit`: the command line."""

import sys

from chipfit.cli import main

sys.exit(main())
