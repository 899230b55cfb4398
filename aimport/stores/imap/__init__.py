"""IMAP accounts as source and destination: what to say to a server, and what its answers mean for us.

Knows commands and responses; nothing of octets on the wire, TLS or logging in (`imap.client`).
"""

from aimport.stores.imap.destination import ImapDestination, ImapDestinationSession
from aimport.stores.imap.source import ImapSource, ImapSourceSession

__all__ = ["ImapDestination", "ImapDestinationSession", "ImapSource", "ImapSourceSession"]
