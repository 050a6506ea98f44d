"""The image's entry point; a plain script, because ``python3 -m`` would import runpy first."""

import sys

import sandbox.log  # first, so that the clock of the log lines starts here
import sandbox.supervisor

sys.exit(sandbox.supervisor.main())
