"""The rules: pure functions from a portfolio's state and a command to a decision. No database, no log, no clock.

policy        the settings that decisions depend on
leg_sizing    budget in USD -> quantity that every leg accepts, and what to order on each
sizing        signal score -> budget in USD -> quantity
state         the state that a batch is decided on, and how a verdict changes it
bounds        what bounds a budget besides its sizing
filling       what a fill, a close, a growth and a new price make of a position
reservations  the rule of reserve
positions     the rules of confirm, fill, release, extend, retag, reprice, rename, adopt
decide        one command -> verdict
guards        who may touch which money: declared portfolios, required tags, API keys that are bound to tags
batch         many commands -> decisions; idempotency, atomic groups, expiry of holds
trace         the input of a decision, as canonical JSON
explain       why a decision came out as it did, in words and as data
"""
