"""The wire: how commands, answers and errors look as JSON. The service and the client library share every line of it.

    reading    bytes -> JSON, strictly: no duplicate names, no NaN, bounded depth
    bodies     request bodies: JSON -> pydantic model -> command object (`validated`, `BODIES[verb].to_command`)
    batches    the body of the batch call (`read_batch`)
    calls      command object -> the HTTP call it is (`call_of`, `batch_form`); what a client sends
    answers    decisions, positions, exposure, pages <-> JSON
    problems   errors <-> RFC 9457 problem details, from one table of codes

Decimals are strings (`"0.018"`), times ISO 8601 in UTC (`"2026-01-31T12:00:00.250000Z"`), what is absent is null.
"""
