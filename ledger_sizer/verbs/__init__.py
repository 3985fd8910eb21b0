"""Methods that the embedded ledger and the HTTP clients share.

methods      one sync and one async method per verb, built from the command types
submission   what `run` and `submit` take
hold         the hold of a `with` block
"""
