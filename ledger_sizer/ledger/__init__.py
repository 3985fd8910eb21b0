"""The embedded ledger and its write path.

ledger       `Ledger`: verbs, reads, archive, close
writer       group commit: the queue, its threads, and callers' futures
committer    one batch: decide, store, retry, isolate
"""
