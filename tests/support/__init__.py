"""Tests of `ledger_sizer.support`."""
