"""What every test may count on, however pytest was started."""

import os
import sys
from pathlib import Path

# The `temporal` command comes with the environment that runs the tests, activated or not.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
