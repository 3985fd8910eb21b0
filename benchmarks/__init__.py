"""Benchmarks of ledger_sizer against the two forms people write without it. See README.md beside this file."""
