"""Which messages of a mailbox are one thread, by RFC 5256 as Dovecot does it. Pure.

    Message-ID, References, In-Reply-To ─▶ trees ─▶ (REFERENCES) trees of one base subject together

Only who belongs together is asked, not in which order, so trees are kept as parents alone.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aimport.query.headers import Fields, sent
from aimport.query.terms import Algorithm
from aimport.query.text import normal_header

_MESSAGE_ID = re.compile(rb"<[ \t]*([^<>\s]+@[^<>\s]+)[ \t]*>")


@dataclass(frozen=True, slots=True)
class Links:
    """What of a header makes threads."""

    id: bytes | None
    references: tuple[bytes, ...]
    """The chain to this message, oldest first."""
    subject: str
    """The base subject, in normal form."""
    date: int
    """Sent, seconds since 1970; 0: not known."""


def links(header: bytes) -> Links:
    """What the header of a message says of its thread."""
    fields = Fields(header)
    own = _MESSAGE_ID.search(fields.first("message-id") or b"")
    references = tuple(_MESSAGE_ID.findall(fields.first("references") or b""))
    if not references:
        references = tuple(_MESSAGE_ID.findall(fields.first("in-reply-to") or b"")[:1])
    return Links(
        id=own[1] if own else None,
        references=references,
        subject=base_subject(normal_header(fields.first("subject") or b"")),
        date=sent(fields.first("date")).at,
    )


def threads(messages: Mapping[int, Links], algorithm: Algorithm) -> dict[int, Hashable]:
    """For each message, by its place in stored order, what names its thread."""
    if algorithm == "ORDEREDSUBJECT":
        return {place: each.subject for place, each in messages.items()}
    trees = _Trees()
    for place, each in messages.items():
        trees.add(place, each)
    roots = {place: trees.root(place) for place in messages}
    if algorithm == "REFS":
        return dict(roots)
    return _by_subject(messages, trees, roots)


class _Trees:
    """Nodes are message IDs, and places of messages whose ID is missing or another's."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}
        self._node: dict[int, Hashable] = {}
        self._place: dict[Hashable, int] = {}

    def add(self, place: int, message: Links) -> None:
        node: Hashable = message.id
        if node is None or node in self._place:
            node = place
        self._place[node] = place
        self._node[place] = node
        above: Hashable = None
        for reference in message.references:
            if above is not None:
                self._link(above, reference)
            above = reference
        if node in self._parent and self._parent[node] != above:
            del self._parent[node]  # what the message says of itself counts more
        if above is not None:
            self._link(above, node)

    def _link(self, parent: Hashable, child: Hashable) -> None:
        """Unless the child has a parent, or would become its own ancestor."""
        if child not in self._parent and not self._descends(parent, child):
            self._parent[child] = parent

    def _descends(self, node: Hashable, ancestor: Hashable) -> bool:
        while node != ancestor:
            if node not in self._parent:
                return False
            node = self._parent[node]
        return True

    def root(self, place: int) -> Hashable:
        node = self._node[place]
        while node in self._parent:
            node = self._parent[node]
        return node

    def top(self, places: Iterable[int], root: Hashable) -> list[int]:
        """The message that is the root, else its highest descendants that are messages."""
        if root in self._place:
            return [self._place[root]]
        return [place for place in places if not self._has_message_above(place)]

    def _has_message_above(self, place: int) -> bool:
        node = self._node[place]
        while node in self._parent:
            node = self._parent[node]
            if node in self._place:
                return True
        return False


def _by_subject(messages: Mapping[int, Links], trees: _Trees, roots: Mapping[int, Hashable]) -> dict[int, Hashable]:
    """Trees whose first messages have one base subject are one thread; an empty one joins nothing."""
    members: dict[Hashable, list[int]] = {}
    for place, root in roots.items():
        members.setdefault(root, []).append(place)
    names: dict[Hashable, Hashable] = {}
    for root, places in members.items():
        first = min(trees.top(places, root), key=lambda place: (messages[place].date, place))
        subject = messages[first].subject
        names[root] = ("subject", subject) if subject else ("root", root)
    return {place: names[root] for place, root in roots.items()}


_BLANKS = re.compile(r"[ \t\r\n]+")
_BLOB: Final = r"\[[^\[\]]*\] ?"
_LEADER = re.compile(rf" |(?:{_BLOB})*(?:RE|FWD|FW) ?(?:{_BLOB})?:")
_FIRST_BLOB = re.compile(rf"{_BLOB}(?=.)", re.DOTALL)


def base_subject(subject: str) -> str:
    """The base subject (RFC 5256 §2.1) of one in normal form."""
    subject = _BLANKS.sub(" ", subject)
    while True:
        subject = _without_trailers(subject)
        while found := _LEADER.match(subject) or _FIRST_BLOB.match(subject):
            subject = subject[found.end() :]
        if not (subject.startswith("[FWD:") and subject.endswith("]")):
            return subject
        subject = subject[5:-1]


def _without_trailers(subject: str) -> str:
    while True:
        shorter = subject.rstrip(" ").removesuffix("(FWD)")
        if shorter == subject:
            return subject
        subject = shorter


def whole_threads(messages: Mapping[int, Links], some: Sequence[int], algorithm: Algorithm) -> list[int]:
    """Places of all messages in a thread with one of `some`, ascending."""
    names = threads(messages, algorithm)
    wanted = {names[place] for place in some}
    return [place for place in messages if names[place] in wanted]
