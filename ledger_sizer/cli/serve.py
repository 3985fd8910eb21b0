"""`ledger-sizer serve`: the HTTP service, its scheduled jobs and its metrics, in one process."""

import gc
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ledger_sizer.cli import output
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import Create, DatabaseUrl, Json

if TYPE_CHECKING:
    from ledger_sizer.config import AppSettings

SERVE_HELP = help_epilog("serve", "serve --port 0 --database-url sqlite:///ledger.db", exits=NEVER_DENIED)


def serve(
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Else SERVICE_HOST, else 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="N", min=0, max=65535, help="Else SERVICE_PORT, else 8321; 0: any.")
    ] = None,
    create: Create = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Serve the ledger over HTTP until stopped by SIGTERM or Ctrl-C.

    Prints its address once it is ready. Stopping answers what was taken, and then exits. Without any API key (see
    `ledger-sizer keys`) it listens to this machine only. A SQLite file that was a ledger and is gone is not created
    anew without --create: an empty ledger would grant again what is held.
    """
    from ledger_sizer.cli.ledger_session import note_created
    from ledger_sizer.config import AppSettings
    from ledger_sizer.model.extras import require_service
    from ledger_sizer.telemetry import configure_logging

    require_service()
    settings = _override_settings(AppSettings.of_program(), host, port, database_url, create=create)
    configure_logging(settings.log_level)

    from prometheus_client import disable_created_metrics

    from ledger_sizer.api import create_app
    from ledger_sizer.api.server import listen, make_server, url_of
    from ledger_sizer.service.bootstrap import running_components
    from ledger_sizer.telemetry import get_logger

    log = get_logger("ledger_sizer.serve")
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's default doubles the number of series
    with running_components(settings) as components, listen(settings.service) as listening:
        note_created(settings.ledger.database_url, created=components.ledger.created)
        app = create_app(
            components.ledger,
            settings.service,
            reads_engine=components.reads,
            keys=components.keys,
            metrics=components.metrics,
            reconciler=components.reconciler,
            tracing=components.tracing,
        )
        _freeze_heap()
        listening.listen(min(settings.service.connections_max, 2048))
        _print_url(url_of(listening), as_json)
        make_server(app, settings.service).run(sockets=[listening])
        log.info("serve.draining", pending=components.ledger.pending)
    log.info("serve.stopped")
    return 0


def _freeze_heap() -> None:
    """Exclude what was loaded until now from garbage collection: it lives as long as the process.

    A full collection of it takes a tenth of a second, and every request waits.
    """
    gc.collect()
    gc.freeze()


def _print_url(url: str, as_json: bool) -> None:
    """Print the address in one line, and flush it: scripts wait for it to know that the service is ready."""
    if as_json:
        output.write_json({"url": url})
    else:
        output.write(f"ledger-sizer serves {url}")
    sys.stdout.flush()


def _override_settings(
    settings: "AppSettings", host: str | None, port: int | None, database_url: str | None, *, create: bool
) -> "AppSettings":
    """Return the settings, with the values that the command line gives instead."""
    from ledger_sizer.cli.ledger_session import with_ledger_settings
    from ledger_sizer.config import ServiceSettings

    service = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    if service:
        changed = ServiceSettings(**{**settings.service.model_dump(), **service})
        settings = settings.model_copy(update={"service": changed})
    ledger = {"database_url": database_url} if database_url is not None else {}
    if create:
        ledger["create"] = "always"
    return with_ledger_settings(settings, **ledger) if ledger else settings
