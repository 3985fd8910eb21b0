"""Runs a reference model of the rules in lockstep with both database engines, and compares answers and hashes."""
