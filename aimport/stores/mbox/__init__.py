"""mbox: one file per mailbox, one message behind the other."""

from aimport.stores.mbox.destination import MboxDestination as MboxDestination
from aimport.stores.mbox.source import MboxSource as MboxSource
