"""Verification: recomputes the hash chain, every position and every scope, and compares them with what is stored."""
