"""Tests of `ledger_sizer.repository`."""
