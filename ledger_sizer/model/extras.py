"""What the extra `service` brings, and the error where it is not installed."""

from importlib.util import find_spec

from ledger_sizer.model.errors import InvalidRequest

SERVICE_PACKAGES = ("apscheduler", "fastapi", "jinja2", "prometheus_client", "uvicorn")
"""As they are imported."""


def require_service() -> None:
    """Raise `InvalidRequest` that says what to install, where a package of the extra is missing. Imports none."""
    missing = [name for name in SERVICE_PACKAGES if find_spec(name) is None]
    if missing:
        raise InvalidRequest(
            f"this needs the extra service, of which {', '.join(missing)} is not installed: "
            'pip install "ledger-sizer[service]"'
        )
