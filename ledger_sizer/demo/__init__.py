"""Runs the demonstration: the service on an embedded SQLite ledger, and eight bots that compete for one cap.

    run              the demonstration from start to end
    processes        starts and stops the processes of the service and the bots
    bots             one bot, a process: `python -m ledger_sizer.demo.bots URL NAME RUN SEED`
    venue            starts the paper venue and the bot that trades there
    venue_bot        that bot: it sends signed orders through ccxt
    drift_injection  changes the account at the venue without the ledger, one change per kind of drift
    screen           progress on a terminal or as lines
    summary          results, read from the ledger after the end

Only the market is simulated. Processes die by real signals, keys are sent twice, orders are signed, and the summary is
computed from the audit chain and the drifts, not from what the bots log.
"""
