"""`python -m bench.profiled FILE ARGUMENTS...`: aimport under cProfile, all threads, by CPU time."""

from __future__ import annotations

import cProfile
import pstats
import sys
import threading
import time
from types import FrameType
from typing import Final

PROFILES: Final[list[cProfile.Profile]] = []


def _begin(_: FrameType | None = None, __: str = "", ___: object = None) -> None:
    """A profile of the calling thread, in place of whatever watches it now."""
    profile = cProfile.Profile(time.thread_time)
    PROFILES.append(profile)
    profile.enable()


def main() -> int:
    from aimport.cli.main import main as run

    file, *arguments = sys.argv[1:]
    if sys.version_info < (3, 12):  # later ones watch the whole process at once, and only one may
        threading.setprofile(_begin)
    _begin()
    try:
        return run(arguments)
    finally:
        for profile in PROFILES:
            profile.create_stats()
        pstats.Stats(*PROFILES).dump_stats(file)


if __name__ == "__main__":
    sys.exit(main())
