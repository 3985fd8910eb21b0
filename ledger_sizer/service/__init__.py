"""The parts of the service besides HTTP.

bootstrap   builds and starts all parts from the settings
jobs        scheduled jobs, run by one replica at a time
head_export exports the hash chains' heads, as evidence kept elsewhere
metrics     Prometheus metrics
tracing     OpenTelemetry traces
api_keys    API keys with roles and portfolios
"""
