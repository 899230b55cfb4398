"""Log lines on stderr, of this process and of those it has workers in: one event, one line."""

from __future__ import annotations

import logging
import sys
from typing import Literal

Form = Literal["text", "json"]


class _Line(logging.Formatter):
    """One event, one line, control characters escaped, cut at a limit: nothing from outside forges a line."""

    LIMIT = 4000

    def format(self, record: logging.LogRecord) -> str:
        from aimport.report import printable

        text = printable(super().format(record))
        if len(text) <= self.LIMIT:
            return text
        kept = self.LIMIT // 4 if record.exc_info else self.LIMIT  # a trace says at its end what it is about
        return f"{text[:kept]}...{text[len(text) - self.LIMIT + kept :]}"

    def formatException(self, ei: object) -> str:  # logging's name
        return super().formatException(ei).replace("\n", " | ")  # type: ignore[arg-type]  # as logging passes it


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        import msgspec

        event = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage()[: _Line.LIMIT],
        }
        if record.exc_info:
            event["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(event).decode()


def set_up_logging(level: int, form: Form) -> None:
    """Log lines of aimport on stderr; of libraries only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Line("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    logging.getLogger("aimport").setLevel(level)
    logging.getLogger("stamina").setLevel(logging.ERROR)  # it says each new try once more, and not of whom
