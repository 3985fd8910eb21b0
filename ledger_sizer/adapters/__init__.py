"""Connects trading bots to the ledger, in few lines of their own.

desk                `Desk`: grants and settlement inside a trading loop; never raises, never waits long
desk_calls          what a desk does at its ledger: asks, settles, frees
wishes              what a bot asked for, and the denials that answer it again for a while
bounded_calls       calls on a thread of their own, for which a caller waits a bounded time
connections         opens the ledger that a bot names by its address
ccxt                `DeskExchange`: a ccxt exchange whose orders ask the ledger first
ccxt_desk           what it does around each order, and after a restart
ccxt_records        what its orders hold, what of them filled, and telling the ledger
ccxt_orders         reads ccxt's orders: what they may open, what they filled, which is which
ccxt_errors         its errors, which are ccxt's too
freqtrade           `DeskMixin` for freqtrade's strategies: where it steps in
freqtrade_entries   each entry of a bot, from the wish to the end of its order
freqtrade_book      reads freqtrade's database
freqtrade_settings  the block `ledger_sizer` of its configuration
nautilus            `DeskStrategy` and `ledger_of` for nautilus_trader
nautilus_desk       what one of its strategies asks of the ledger, and tells it
nautilus_orders     what its orders open and what its positions are, in USD
nautilus_view       what it has: orders that are out, and positions

Each framework is imported only by the modules that are named after it.
"""
