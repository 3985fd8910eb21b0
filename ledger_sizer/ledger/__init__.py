"""The embedded ledger and its write path.

ledger         `Ledger`: verbs, archive, open and close
reads          the reads; async_reads: the same, awaitable
groups         the writer's groups, and the form of their answers
sweep          overdue holds, slice by slice
writer         group commit: the queue, its threads, and callers' futures
inline_writer  the same in the callers' threads, for a ledger in memory
committer      one batch: decide, store, retry, isolate
"""
