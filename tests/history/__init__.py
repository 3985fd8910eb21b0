"""Tests of `ledger_sizer.history`."""
