"""The one place where schemes and classes meet."""

from __future__ import annotations

from typing import Literal

from aimport.errors import ConfigurationError
from aimport.interfaces import Destination, Source
from aimport.model import Endpoint

Fsync = Literal["never", "batch", "each"]


class Stores:
    """Opens endpoints of the known schemes. Modules are imported when their scheme is first met.

    `salvage`: a damaged source gives what it still holds (`--salvage`).
    """

    def __init__(self, *, fsync: Fsync = "batch", salvage: bool = False) -> None:
        self._fsync: Fsync = fsync
        self._salvage = salvage

    def source(self, endpoint: Endpoint) -> Source:
        match endpoint.scheme:
            case "maildir":
                from aimport.stores.maildir import MaildirSource

                return MaildirSource(endpoint)
            case "sdbox" | "mdbox":
                from aimport.stores.dbox import DboxSource

                return DboxSource(endpoint, salvage=self._salvage)
            case "imap" | "tunnel":
                from aimport.stores.imap import ImapSource

                return ImapSource(endpoint)
            case "memory":
                from aimport.stores.memory import MemorySource

                return MemorySource.at(endpoint)
        raise ConfigurationError(f"{endpoint.scheme}: cannot be a source yet")

    def destination(self, endpoint: Endpoint) -> Destination:
        match endpoint.scheme:
            case "maildir":
                from aimport.stores.maildir import MaildirDestination

                return MaildirDestination(endpoint, fsync=self._fsync)
            case "imap" | "tunnel":
                from aimport.stores.imap import ImapDestination

                return ImapDestination(endpoint)
            case "memory":
                from aimport.stores.memory import MemoryDestination

                return MemoryDestination.at(endpoint)
        raise ConfigurationError(f"{endpoint.scheme}: cannot be a destination yet")
