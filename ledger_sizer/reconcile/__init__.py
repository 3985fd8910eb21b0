"""The ledger against the exchange: what differs, since when, what was done about it. Nothing is repaired by guessing.

kinds      the kinds of drift, what may be done about each, and the types that carry them
book       the ledger's side of the comparison
compare    pure: the book and the snapshots of the accounts -> findings
look       both sides and their comparison, in the caller's thread
apart      the same in a process of its own, which is what the service does
drifts     the life of a drift, and the record of the runs; every write is fenced by the run's lease
effects    what drifts do to the ledger: count, freeze, thaw; always through its commands
adoption   pure: a drift and the positions -> the commands that make the ledger say what the exchange shows
operator   what a person decides about a drift
owed       what the webhook is owed, written with the run
alerts     telling others: the log, and the webhook until it takes what it is owed
run        one run from its lease to its record
"""
