"""The fault matrix: what may go wrong, by row. `@pytest.mark.fault("F5")` says which rows a test is for.

`test_matrix` fails when a row has no test, or one that must always run has none that always does.
"""

from __future__ import annotations

from typing import Final

ROWS: Final = {
    "F1": "client kill -9 at each journal write",
    "F2": "client kill -9 at each octet of one APPEND",
    "F3": "power cut: unsynced writes vanish",
    "F4": "server process killed mid-literal, after the literal, between naming and OK, after OK",
    "F5": "OK lost: the server stored, the client never saw it",
    "F6": "reset at each octet of a server answer",
    "F7": "half-open: packets vanish",
    "F8": "server stalls, window zero; drips",
    "F9": "ENOSPC at destination, journal, temporary file",
    "F10": "EIO on read, write, fsync",
    "F11": "EDQUOT, short write, EINTR",
    "F12": "destination becomes read-only",
    "F13": "OVERQUOTA after k messages; inside MULTIAPPEND",
    "F14": "NO on one message; BAD on one message",
    "F15": "NO while a synchronising literal waits, or after LITERAL+ was sent",
    "F16": "BYE; BYE in the middle of FETCH",
    "F17": "throttling; login refused above n connections",
    "F18": "DNS: no such name, try again, slow, one address dead",
    "F19": "TLS: expired, wrong name, self-signed, old, stalls, cut",
    "F20": "authentication fails for 1 of N users; for all",
    "F21": "a source message is renamed while listed or read",
    "F22": "the source mailbox gets mail while read",
    "F23": "the source expunges; UIDVALIDITY changes",
    "F24": "the clock jumps back, forward, to 2038",
    "F25": "SIGTERM, SIGINT; twice; during the report",
    "F26": "SIGHUP, SIGPIPE, stdout closed",
    "F27": "journal: torn tail, bit flip, empty, newer, other job, read-only, deleted",
    "F28": "second instance; a crashed owner's lock",
    "F29": "out of file descriptors",
    "F30": "memory limit",
    "F31": "file size limit, no temporary space",
    "F32": "user list: missing, changing, duplicate, long, bad octets",
    "F33": "destination folder deleted or renamed; TRYCREATE",
    "F34": "server says OK and stored nothing, or other octets",
    "F35": "an unforeseen exception at any step",
}
ALWAYS: Final = frozenset(
    "F1 F2 F4 F5 F6 F9 F13 F14 F15 F16 F19 F20 F21 F25 F27 F28".split()  # first form: Python and Dovecot alone
)
"""Rows with a test that never skips."""
TOOLS: Final = frozenset({"strace", "faketime", "mounts", "loop"})
"""Fixtures that skip where a tool or a right is missing."""
