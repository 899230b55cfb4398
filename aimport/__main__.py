"""python -m aimport"""

from __future__ import annotations

import sys


def main() -> None:
    """The `aimport` command."""
    from aimport.cli.main import main as run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
