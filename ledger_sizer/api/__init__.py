"""The HTTP service: `/v1`, JSON, decimals as strings, RFC 9457 problem details.

    app                `create_app`: builds the ASGI application
    context            what all routes share
    middleware         request ids, bound on concurrent requests, metrics, unexpected errors
    auth               API keys, roles and portfolios of callers
    request_body       idempotency key, media type, bounded body
    responses          JSON, decisions and errors as HTTP responses
    response_models    the responses as pydantic models, for OpenAPI
    audit_models       those about chain heads, verification and health
    deadline           timeout for the ledger's answers
    commands           one endpoint per verb, and the batch
    reads              exposure, positions, decisions, overview
    export             decisions as CSV and NDJSON, streamed
    audit              verification, sweep
    events             decisions as server-sent events
    event_cursor       how far a stream has got, and its event ids
    reconciliation     runs and drifts
    dashboard_routes   pages and forms of the dashboard
    sessions           cookie and CSRF checks of the dashboard
    throttle           who a client is, and the bound on failed logins
    health             liveness, readiness, metrics
    openapi            the OpenAPI document
    server             uvicorn with further bounds

All calls go through `Ledger` or `Reconciler`, and `wire` defines all JSON.
"""

from ledger_sizer.api.app import create_app as create_app
