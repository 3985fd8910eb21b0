"""Tests of `ledger_sizer.demo`."""
