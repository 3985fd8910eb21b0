"""Tests of `ledger_sizer.rules`."""
