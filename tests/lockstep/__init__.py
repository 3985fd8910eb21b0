"""Lockstep: a second opinion of the rules, compared with both engines step by step, hash for hash."""
