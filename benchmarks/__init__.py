"""Benchmarks of ledger_sizer against two hand-written alternatives. See README.md in this folder."""
