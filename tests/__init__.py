"""Tests of ledger_sizer, on SQLite and on a real PostgreSQL."""
