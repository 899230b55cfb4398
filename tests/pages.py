"""What a browser would see of a page: its elements and words, and everything that would act or be fetched."""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree


class Seen(HTMLParser):
    """Elements in order, names of their attributes, words; `acting`: scripts, handlers, references to elsewhere."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.words: list[str] = []
        self.acting: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form", "img", "use", "foreignobject"):
            self.acting.append(tag)
        for name, value in attrs:
            self.attributes.append(name)
            if name.startswith("on") or name in ("src", "href", "xlink:href", "srcset", "style", "action"):
                self.acting.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append(data.strip())


def looked_at(page: str) -> Seen:
    """The page, by two parsers.

    Raises:
        xml.etree.ElementTree.ParseError: it is not well-formed.
    """
    ElementTree.fromstring(page.encode())
    seen = Seen()
    seen.feed(page)
    seen.close()
    return seen
