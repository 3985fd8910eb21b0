"""The embedded ledger and its write path.

ledger       `Ledger`: verbs, reads, archive, close
groups       the writer's groups, and the form of their answers
sweep        overdue holds, slice by slice
writer       group commit: the queue, its threads, and callers' futures
committer    one batch: decide, store, retry, isolate
"""
