"""Tests of `ledger_sizer.paper`."""
