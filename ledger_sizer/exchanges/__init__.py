"""What the ledger sees of exchanges: balances, positions and instrument rules, in base units and exact numbers."""
