"""Compares the ledger with the exchange, tracks the differences as drifts and acts on them. Never repairs by guessing.

The types (kinds of drift, policies, findings, drifts) are in `model.reconciliation`.

ledger_side     reads positions and sums up the expected quantities by market
netting         nets long against short, for accounts in one-way mode
in_flight       matches differences against live holds whose orders may have filled
assets          which balances the ledger must explain, by the policies of assets; pure
decided_policies  the policies that persons decided, stored and read
compare         the ledger's side and the account snapshots -> findings; pure
unseen          what snapshots did not see, and which differences need a second look at the exchange's markets
throttle        sleeps between short stretches of work, so that reservations do not wait
inspection      fetches, reads and compares, in the caller's thread
worker_process  the same in a process of its own, as the service does it
sameness        whether a finding is a difference that is known already; pure
drifts          records runs and tracks drifts; every write is fenced by the run's lease
effects         counts excess, freezes and thaws, by commands of the ledger
pairing         which holdings hedge each other: longs against shorts by coin; pure
adoption        a drift and the positions -> the commands that adopt it; pure
explanation     what happened at the exchange that explains a drift; pure
drift_activity  asks a drift's account for that, on demand
operator        decisions about drifts: adopt, ignore, close
outbox          stores the webhook's alerts with the run that raises them
alerts          logs drifts and delivers the outbox to the webhook
run             one run, from lease to report
day_one         takes over what accounts hold: a run whose excess is adopted at once
left_out        why an import leaves something out; pure
"""
