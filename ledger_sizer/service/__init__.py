"""The parts of the service besides HTTP.

bootstrap   builds and starts all parts from the settings
jobs        scheduled jobs, run by one replica at a time
metrics     Prometheus metrics
tracing     OpenTelemetry traces
api_keys    API keys with roles and portfolios
"""
