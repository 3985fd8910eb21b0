"""Verification: recomputes the hash chain, every position and every scope, and compares them with what is stored.

chain: the verification as a whole, with the hash chain, the archive files, the facets and the head
rows: reads what is compared, of many portfolios at a time
positions: compares position rows with the decisions about them
position_fold: computes a position from its decisions
scopes: compares scope rows with decisions and with position rows
head_files: files of trusted heads
schema: compares tables, constraints, indexes and triggers with what the migrations made
"""
