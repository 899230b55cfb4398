"""sdbox and mdbox, Dovecot's own formats: indexes that alone have the flags, and files with the messages."""

from aimport.stores.dbox.source import DboxSource as DboxSource
