"""A supervisor over dummy children, as a program: `python -m tests.cli.dummy_stack <directory>`.

Prints a JSON line with the children's process ids when all are ready; ends on SIGTERM like `desktopctl up`.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from cli.children import ChildSpec
from cli.supervisor import Supervisor, Timing

POLITE = "import signal,sys,time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(0)); time.sleep(600)"
STUBBORN = (
    "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('deaf', flush=True); time.sleep(600)"
)
PARENT = (
    "import subprocess,sys,time; "
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "open(sys.argv[1], 'w').write(str(p.pid)); time.sleep(600)"
)


def python(name: str, code: str, *arguments: str, needs: tuple[str, ...] = ()) -> ChildSpec:
    """A child that runs a line of Python."""
    return ChildSpec(name, (sys.executable, "-c", code, *arguments), dict(os.environ), needs=needs)


async def main(directory: Path) -> None:
    """Run the children until SIGTERM."""
    stubborn_log = directory / "stubborn.log"

    async def is_deaf() -> bool:
        return stubborn_log.exists() and "deaf" in stubborn_log.read_text()

    stubborn = python("stubborn", STUBBORN, needs=("polite",))
    specs = [
        python("polite", POLITE),
        ChildSpec(stubborn.name, stubborn.command, stubborn.environment, stubborn.needs, probe=is_deaf),
        python("parent", PARENT, str(directory / "grandchild")),
    ]
    order: list[str] = []
    supervisor = Supervisor(
        specs, directory, lambda report: order.append(f"{report.name} {report.part}"), Timing(grace=0.3)
    )
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await supervisor.start()
    print(json.dumps(supervisor.pids()), flush=True)
    await stopping.wait()
    await supervisor.stop()
    print(json.dumps(order), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
