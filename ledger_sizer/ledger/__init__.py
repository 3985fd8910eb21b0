"""The embedded ledger and its write path.

ledger         `Ledger`: verbs, reads, archive, close
groups         the writer's groups, and the form of their answers
sweep          overdue holds, slice by slice
writer         group commit: the queue, its threads, and callers' futures
inline_writer  the same in the callers' threads, for a ledger in memory
committer      one batch: decide, store, retry, isolate
"""
