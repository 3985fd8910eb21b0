"""The service's parts besides HTTP: composition from settings, scheduled jobs, metrics, tracing, API keys."""
