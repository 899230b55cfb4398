"""Tests that name their event loops run on those, whatever `--loop` says."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    """All loops, for `pytest.mark.asyncio(loop_factories=...)` to choose from; other tests take the run's own."""
    if all("loop_factories" not in marker.kwargs for marker in item.iter_markers("asyncio")):
        return None
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.SelectorEventLoop}
    if sys.platform != "win32":
        import uvloop

        loops["uvloop"] = uvloop.new_event_loop
    return loops
