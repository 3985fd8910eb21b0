"""Sets up logging: structlog on top of the standard library, so that an embedding application controls its handlers.

The library does not configure logging by itself. Unconfigured, it prints warnings and errors only.
"""

import logging
import sys
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

request_id_var: ContextVar[str | None] = ContextVar("ledger_sizer_request_id", default=None)
"""Id of the request being served. Set it to the id in your own logs: every log line of this package about the request
then has the same `request_id`, including the line of the committed decision."""


def _add_request_id(_logger: object, _name: str, event: EventDict) -> EventDict:
    request_id = request_id_var.get()
    if request_id is not None:
        event.setdefault("request_id", request_id)
    return event


_SHARED_PROCESSORS: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    _add_request_id,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


class _NonRaisingLogger(structlog.stdlib.BoundLogger):
    """Drops an event that cannot be logged (full disk, defect in an application's handler), as the standard library's
    handlers do. A failed log call must not end the writer thread, nor make a commit look failed.
    """

    def _proxy_to_logger(self, *args: Any, **kwargs: Any) -> Any:
        with suppress(Exception):
            return super()._proxy_to_logger(*args, **kwargs)


def get_logger(name: str) -> Any:
    """Return a structlog logger that passes its events, as dictionaries, to the standard library's logger `name`.

    Events carry their figures as fields. The bound context of `structlog.contextvars` (such as a request id) is merged
    into each.
    """
    return structlog.wrap_logger(
        logging.getLogger(name),
        wrapper_class=_NonRaisingLogger,
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED_PROCESSORS,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
    )


def configure_logging(level: str = "INFO", *, stream: TextIO | None = None) -> None:
    """Write the log to standard error: console lines on a terminal, JSON lines elsewhere. For programs, not libraries.

    Logs this package from `level` up, its server (uvicorn) from WARNING, its scheduler (APScheduler) from ERROR.
    """
    stream = stream or sys.stderr
    renderer = (
        structlog.dev.ConsoleRenderer()
        if stream.isatty()
        else structlog.processors.JSONRenderer(sort_keys=True, default=str)
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED_PROCESSORS,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    for name, lowest in (("ledger_sizer", level), ("uvicorn", "WARNING"), ("apscheduler", "ERROR")):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(lowest)
        logger.propagate = False
