"""`python -m agentserve.cli`, where the console script is not on the path."""

import sys

from agentserve.cli import main

sys.exit(main())
