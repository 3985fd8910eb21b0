"""Tests of `ledger_sizer.api`."""
