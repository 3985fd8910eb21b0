"""Tests of `ledger_sizer.lockstep`."""
