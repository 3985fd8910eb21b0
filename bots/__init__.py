"""Rounds with real bots: real frameworks at the paper venue or their own simulated exchange, under one cap."""
