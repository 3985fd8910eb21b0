"""Tests of `ledger_sizer.views`."""
