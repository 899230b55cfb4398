"""python -m aimport"""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """The `aimport` command."""
    gc.disable()  # what is imported stays: nothing of it is worth looking at
    from aimport.cli.main import main as run

    gc.enable()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
