"""The JSON formats of commands, results and errors, shared by the service and the client.

    strict_json      bytes -> JSON: no duplicate names, no NaN, bounded depth
    requests         request bodies: JSON -> pydantic model -> command (`validated`, `BODIES[verb].to_command`)
    batch            the body of the batch call (`read_batch`)
    http_calls       command -> HTTP call (`http_call_of`, `batch_form`), as the client sends it
    codec            objects and pages <-> JSON, from one declaration of their public names (`Codec`)
    responses        decisions, positions, exposure <-> JSON
    overviews        overviews <-> JSON
    reconciliation   runs, findings and drifts <-> JSON
    verification     what a verification found <-> JSON
    problems         errors <-> RFC 9457 problem details, from one table of codes
    caps_file        the caps of portfolios <-> TOML, for people
    export           decisions -> CSV and NDJSON lines

Decimals are strings (`"0.018"`), times ISO 8601 in UTC (`"2026-01-31T12:00:00.250000Z"`), absent values null.
"""
