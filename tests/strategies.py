"""Hypothesis strategies: flags, keywords, mailbox names, bodies, messages."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import strategies as st

from aimport import flags
from aimport.model import Message, MessageKey

system_flags = st.sampled_from(sorted(flags.SYSTEM_FLAGS))
keywords = st.one_of(
    st.sampled_from(["$Forwarded", "NonJunk", "Junk", "$MDNSent", "Project-X", "a", "A"]),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30).filter(flags.is_keyword),
)
flag_sets = st.frozensets(st.one_of(system_flags, keywords), max_size=8)

# What a store may be asked to hold in one level: anything but lone surrogates.
unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
levels = st.text(
    st.one_of(
        st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="./"),
        st.characters(min_codepoint=0xA0, max_codepoint=0x3FF),
        st.sampled_from("&日本語Ж😀"),
    ),
    min_size=1,
    max_size=12,
).filter(lambda level: not level.startswith("~") and level.upper() != "INBOX")
paths = st.lists(levels, min_size=1, max_size=4).map(tuple)

bodies = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"\0", b"\xff"]), max_size=20).map(b"".join),
)
dates = st.integers(-2_000_000_000, 15_000_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
"""What a file time holds on ext4."""


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Any message; its key is not unique."""
    return Message(
        key=MessageKey(draw(st.text("0123456789", min_size=1, max_size=8))),
        flags=draw(flag_sets),
        internal_date=draw(dates),
        body=draw(bodies),
    )
