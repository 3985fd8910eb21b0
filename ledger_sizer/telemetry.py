"""Logging: structlog through the standard library, so that an application that embeds the ledger stays in charge.

A library does not print by itself: where logging is not configured, only warnings and errors appear.
"""

import logging
import sys
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

request_id_var: ContextVar[str | None] = ContextVar("ledger_sizer_request_id", default=None)
"""The request that the present code works for. Set it to what your own logs call the request, and every line of this
package that belongs to it carries the same `request_id`, that of the committed decision included."""


def _add_request_id(_logger: object, _name: str, event: EventDict) -> EventDict:
    request_id = request_id_var.get()
    if request_id is not None:
        event.setdefault("request_id", request_id)
    return event


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    _add_request_id,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


class _NeverRaises(structlog.stdlib.BoundLogger):
    """What cannot be logged (a full disk, a defect in an application's handler) is lost, as it is with the handlers of
    the standard library: it must not end the writer's thread, nor make a commit look as if it had failed.
    """

    def _proxy_to_logger(self, *args: Any, **kwargs: Any) -> Any:
        with suppress(Exception):
            return super()._proxy_to_logger(*args, **kwargs)


def get_logger(name: str) -> Any:
    """A structlog logger that hands its events, as a dictionary, to the standard library's logger of that name.

    Events carry their figures as fields; the bound context of `structlog.contextvars` (such as a request id) is
    merged into each.
    """
    return structlog.wrap_logger(
        logging.getLogger(name),
        wrapper_class=_NeverRaises,
        processors=[structlog.stdlib.filter_by_level, *_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    )


def configure_logging(level: str = "INFO", *, stream: TextIO | None = None) -> None:
    """Write the log to standard error: console lines on a terminal, JSON lines elsewhere. For programs.

    The package from `level` on; of its server the warnings, of its scheduler the errors, in the same form.
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
            foreign_pre_chain=_SHARED,
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
