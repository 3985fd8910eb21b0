"""Connects the ledger to the frameworks that bots are written in, one module each.

    nautilus         `DeskStrategy` and `ledger_of` for nautilus_trader
    nautilus_orders  what its orders open and what its positions are, in USD

A module imports its framework, so import only the one you use.
"""
