"""Tests of `ledger_sizer.model`."""
