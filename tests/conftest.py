"""What every test may count on, however pytest was started."""

import os
import sys
from pathlib import Path

# The `temporal` command comes with the environment that runs the tests, activated or not. Last, because nothing else
# is to be found there before the machine's own.
os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{Path(sys.executable).parent}"
