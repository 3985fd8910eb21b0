"""Connects trading bots to the ledger, in few lines of their own.

desk           `Desk`: grants and settlement inside a trading loop; never raises, never waits long
desk_calls     what a desk does at its ledger: asks, settles, frees
wishes         what a bot asked for, and the denials that answer it again for a while
bounded_calls  calls on a thread of their own, for which a caller waits a bounded time

Each framework is imported only by the module that is named after it.
"""
