"""User lists as other tools write them, each row brought into the columns of the canonical list."""
