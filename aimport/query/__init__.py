"""What is selected: words of the query become a predicate on mailboxes."""
