"""A multipart without parts has an empty text, for each MIMEPART key of a query and not only for the first."""

from __future__ import annotations

from pathlib import Path

import pytest

from aimport.model import Endpoint
from aimport.query.parse import parse_query
from aimport.stores.maildir import MaildirSource
from tests.search import select_all

BODY = b'From: a@example.org\nContent-Type: multipart/mixed; boundary="="\n\npreamble\n'


@pytest.mark.parametrize(
    ("words", "selected"),
    [
        ("MIMEPART PARAM charset ascii", True),
        ("MIMEPART ID <none@id> OR MIMEPART PARAM charset ascii", True),
        ("NOT ( MIMEPART ID <none@id> OR MIMEPART PARAM charset ascii )", False),
    ],
)
async def test_every_key_sees_the_empty_text_of_a_multipart_without_parts(
    words: str, selected: bool, tmp_path: Path
) -> None:
    for part in ("cur", "new", "tmp"):
        (tmp_path / part).mkdir()
    (tmp_path / "cur" / "1.a:2,").write_bytes(BODY)
    found = await select_all(MaildirSource(Endpoint(scheme="maildir", path=str(tmp_path))), parse_query(words.split()))
    assert bool(found) is selected
