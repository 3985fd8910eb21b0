"""The write path: `Ledger`, its verbs, and the writer that answers many callers with one commit."""
