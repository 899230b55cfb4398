"""Sans-I/O IMAP protocol and the client: the only importer of aioimaplib."""
