"""The demonstration: the service on an embedded SQLite ledger, and eight bots that compete for one cap.

    bots       what one bot does, in a process of its own: `python -m ledger_sizer.demo.bots URL NAME LIFE SEED`
    processes  starting the service and the bots, and ending each by its own id
    trader     a bot that really trades, at a paper venue
    venue      the paper venue, and what somebody does there behind the ledger's back
    run        the demonstration from beginning to end
    screen     what is seen meanwhile, on a terminal and elsewhere
    summary    what came of it, read from the ledger afterwards

Nothing is simulated but the market: processes die by real signals, keys are really sent twice, orders are signed, and
the summary is computed from the audit chain and the drifts, not from what the bots say.
"""
