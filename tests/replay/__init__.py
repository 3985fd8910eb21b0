"""Tests of `ledger_sizer.replay`."""
