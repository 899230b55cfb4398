"""Maildir and Maildir++: one directory per mailbox, one file per message, flags in file names."""

from aimport.stores.maildir.destination import MaildirDestination as MaildirDestination
from aimport.stores.maildir.source import MaildirSource as MaildirSource
