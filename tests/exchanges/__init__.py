"""Tests of `ledger_sizer.exchanges`."""
