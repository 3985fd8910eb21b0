"""Tests of `ledger_sizer.reconcile`."""
