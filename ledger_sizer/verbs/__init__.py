"""The verbs as methods, blocking and awaitable, and the hold of a `with` block: shared by the ledger and its client."""
