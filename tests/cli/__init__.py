"""Tests of `ledger_sizer.cli`."""
