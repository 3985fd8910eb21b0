"""Tests of `campaign`: what its auditor sees, how it measures, and what it writes."""
