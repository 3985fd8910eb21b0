"""Tests of `ledger_sizer.adapters`."""
