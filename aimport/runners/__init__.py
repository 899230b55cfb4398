"""Who drives the users of a plan: `local` is one event loop in this process."""
