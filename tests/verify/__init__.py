"""Tests of `ledger_sizer.verify`."""
