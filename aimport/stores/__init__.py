"""The one place where schemes and classes meet."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Literal

from aimport.errors import ConfigurationError
from aimport.interfaces import Destination, Source
from aimport.model import Endpoint
from aimport.pacing import Throttles

if TYPE_CHECKING:
    from aimport.stores.rights import Pool

Fsync = Literal["never", "batch", "each"]


class Stores:
    """Opens endpoints of the known schemes. Modules are imported when their scheme is first met.

    `link`: a destination may give a source's file a second name instead of copying it. `salvage`: a damaged source
    gives what it still holds (`--salvage`). `throttles`: the rates of the run. Endpoints with rights of their own are
    opened in a process that has them.
    """

    def __init__(
        self,
        *,
        fsync: Fsync = "batch",
        link: bool = False,
        salvage: bool = False,
        throttles: Throttles | None = None,
    ) -> None:
        self._fsync: Fsync = fsync
        self._link = link
        self._salvage = salvage
        self._pool: Pool | None = None
        self._throttles = throttles

    def __getstate__(self) -> dict[str, object]:
        """What may travel to another process: that has children of its own."""
        return {**self.__dict__, "_pool": None}

    def source(self, endpoint: Endpoint) -> Source:
        source = self._source(endpoint)
        if endpoint.rights is None:
            return source
        from aimport.stores.rights import RightsSource

        return RightsSource(self._children(), endpoint, source, salvage=self._salvage)

    def destination(self, endpoint: Endpoint) -> Destination:
        destination = self._destination(endpoint)
        if endpoint.rights is None:
            return destination
        from aimport.stores.rights import RightsDestination

        return RightsDestination(self._children(), endpoint, destination, fsync=self._fsync, link=self._link)

    def _children(self) -> Pool:
        """What has the rights of users; it ends with this object."""
        if self._pool is None:
            from aimport.stores.rights import Pool

            self._pool = Pool()
            weakref.finalize(self, self._pool.close)
        return self._pool

    def _source(self, endpoint: Endpoint) -> Source:
        match endpoint.scheme:
            case "maildir":
                from aimport.stores.maildir import MaildirSource

                return MaildirSource(endpoint)
            case "sdbox" | "mdbox":
                from aimport.stores.dbox import DboxSource

                return DboxSource(endpoint, salvage=self._salvage)
            case "mbox":
                from aimport.stores.mbox import MboxSource

                return MboxSource(endpoint)
            case "eml" | "mh" | "zip" | "tar":
                from aimport.stores import loose

                kinds = {"eml": loose.EmlSource, "mh": loose.MhSource, "zip": loose.ZipSource, "tar": loose.TarSource}
                return kinds[endpoint.scheme](endpoint)
            case "auto":
                from aimport.stores.auto import AutoSource

                return AutoSource(endpoint, self._source)
            case "imap" | "tunnel":
                from aimport.stores.imap import ImapSource

                return ImapSource(endpoint, throttles=self._throttles)
            case "memory":
                from aimport.stores.memory import MemorySource

                return MemorySource.at(endpoint)
        raise ConfigurationError(f"{endpoint.scheme}: cannot be a source yet")

    def _destination(self, endpoint: Endpoint) -> Destination:
        match endpoint.scheme:
            case "maildir":
                from aimport.stores.maildir import MaildirDestination

                return MaildirDestination(endpoint, fsync=self._fsync, link=self._link)
            case "mbox":
                from aimport.stores.mbox import MboxDestination

                return MboxDestination(endpoint, fsync=self._fsync)
            case "eml":
                from aimport.stores.loose import EmlDestination

                return EmlDestination(endpoint, fsync=self._fsync)
            case "imap" | "tunnel":
                from aimport.stores.imap import ImapDestination

                return ImapDestination(endpoint, throttles=self._throttles)
            case "memory":
                from aimport.stores.memory import MemoryDestination

                return MemoryDestination.at(endpoint)
        raise ConfigurationError(f"{endpoint.scheme}: cannot be a destination yet")
