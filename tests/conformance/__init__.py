"""One suite over all faces of the ledger: the same calls, the same acceptance, code, field and effect."""
