"""Tests of `ledger_sizer.wire`."""
