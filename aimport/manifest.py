"""A record of every message of a run that a hoster can hand to a customer: one JSON object a line, chained by hashes.

    {"manifest":1,"run":...,"chain":H1}
    {"n":1,"user":...,"source":...,"key":...,"decision":"imported",...,"chain":H2}
    {"user":...,"status":"done","found":...,"chain":H3}

`chain` is the SHA-256, in hexadecimal, of the `chain` of the line before (nothing for the first) and of the line itself
without its `,"chain":"..."`. Who keeps the last one can tell later whether any line was changed, added or left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Final

from aimport.journal import Entry, Journal
from aimport.model import Appended, Present, Rejected

VERSION: Final = 1
VANISHED: Final = "vanished"


def lines(journal: Journal, chain: str = "") -> Iterator[tuple[str, str]]:
    """The manifest of a run: each line without its end, and its chain. `chain`: of the last line of a run before."""
    for item in _items(journal):
        text = json.dumps(item, separators=(",", ":"))[:-1]
        chain = hashlib.sha256((chain + text + "}").encode("ascii")).hexdigest()
        yield f'{text},"chain":"{chain}"}}', chain


def _items(journal: Journal) -> Iterator[dict[str, object]]:
    yield {"manifest": VERSION, "run": journal.run, "created": journal.created}
    number = 0
    for user, result in _users(journal):
        for entry in _last_ends(journal, user):
            number += 1
            yield {"n": number, **_message(entry)}
        yield {"user": user, **result}
    yield {"end": journal.run, "messages": number}


def _users(journal: Journal) -> Iterator[tuple[str, dict[str, object]]]:
    for result in journal.results():
        counts = result.to_json()
        yield result.user, {key: counts[key] for key in ("status", "found", "imported", "present", "reasons", "error")}
    for user in journal.begun():
        yield user, {"status": "stopped"}


def _last_ends(journal: Journal, user: str) -> Iterator[Entry]:
    """Each message of a user once, as it ended."""
    refused: dict[tuple[int, str], int] = {}
    for place, entry in enumerate(journal.entries(user)):
        if isinstance(entry.outcome, Rejected):
            refused[entry.lane.number, entry.key] = place
        elif refused:
            refused.pop((entry.lane.number, entry.key), None)  # a later try ended otherwise
    for place, entry in enumerate(journal.entries(user)):
        if not isinstance(entry.outcome, Rejected) or refused.get((entry.lane.number, entry.key)) == place:
            yield entry


def _message(entry: Entry) -> dict[str, object]:
    outcome, fingerprint = entry.outcome, entry.fingerprint
    decision, reason = "in doubt", ""
    uid: int | None = None
    more: dict[str, object] = {}
    if isinstance(outcome, Appended):
        decision, uid = "imported", outcome.uid
        if outcome.dropped:
            more["dropped"] = outcome.dropped
        if outcome.repaired is not None:
            original = outcome.repaired.original
            more["repaired"] = {
                "steps": outcome.repaired.steps,
                "reason": outcome.repaired.reason,
                "size": original.size,
                "sha256": original.digest.hex(),
            }
    elif isinstance(outcome, Present):
        decision, more["held"] = "present", outcome.held
    elif isinstance(outcome, Rejected):
        decision = "skipped" if outcome.code == VANISHED else "rejected"
        reason = f"[{outcome.code}] {outcome.text}" if outcome.code else outcome.text
    return {
        "user": entry.user,
        "source": entry.lane.source,
        "key": entry.key,
        "destination": entry.lane.destination,
        "uidvalidity": entry.lane.position.uidvalidity or None,
        "uid": uid,
        "date": entry.date,
        "size": fingerprint.size if fingerprint else None,
        "sha256": fingerprint.digest.hex() if fingerprint else None,
        "decision": decision,
        "reason": reason,
        **more,
    }
