"""The wire: how commands, answers and errors look as JSON. The service and the client library share every line of it.

    reading    bytes -> JSON, strictly: no duplicate names, no NaN, bounded depth
    requests   request bodies (pydantic) <-> command objects, and which HTTP call each verb is
    answers    decisions, positions, exposure, pages <-> JSON
    problems   errors <-> RFC 9457 problem details, from one table of codes

Decimals are strings (`"0.018"`), times ISO 8601 in UTC (`"2026-01-31T12:00:00.250000Z"`), what is absent is null.
"""
