"""The HTTP service: `/v1`, JSON, decimals as strings, RFC 9457 problem details.

    app          puts it together: `create_app`
    edge         around every request: its id, limits, metrics, and errors turned into problems
    access       who may do what: API keys, roles, portfolios
    intake       reading a request: key, media type, bounded body
    deadline     how long an answer of the ledger is waited for
    verbs        the calls that change something: one endpoint per verb, and the batch
    reads        exposure, positions, decisions
    export       decisions as CSV and NDJSON, streamed
    events       decisions as server-sent events
    pages        the dashboard: its pages and forms
    sessions     the dashboard's cookie, and what its forms must prove
    operations   liveness, readiness, metrics
    schema       the OpenAPI of it all
    server       uvicorn with the limits it lacks

Every call enters the ledger at `Ledger`, and every form of JSON is `wire`'s.
"""

from ledger_sizer.api.app import create_app as create_app
