"""The rules: pure functions from a portfolio's state and a command to a decision. No database, no log, no clock.

policy     the settings that decisions depend on
sizing     signal score -> budget in USD -> quantity both legs accept
state      the state that a batch is decided on, and how a verdict changes it
bounds     what bounds a budget besides its sizing
decide     one command -> verdict
batch      many commands -> decisions; idempotency, atomic groups, expiry of holds
trace      the input of a decision, as canonical JSON
explain    why a decision came out as it did, in words and as data
"""
