"""Tests of `ledger_sizer.dashboard`."""
