"""Logging: one line per event on standard error, for people or as JSON.

Bodies and keys are never in it, and so no tracebacks with the values of local variables, as structlog has them by
default; ``log.bodies`` is what asks for bodies.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import msgspec
import structlog

from specproxy.config.schema import LogConfig

_QUIET = ("asyncio", "aiohttp", "watchfiles")
"""Libraries whose warnings matter and whose chatter does not."""


def configure_logs(config: LogConfig, stream: TextIO | None = None) -> None:
    """Set up structlog, and send the warnings of libraries the same way. ``stream``: standard error by default."""
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[config.level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *_renderers(config, stream),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[_ToStructlog()], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _renderers(config: LogConfig, stream: TextIO) -> list[structlog.typing.Processor]:
    if config.format == "json":
        return [
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    console = structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), pad_event_to=24, exception_formatter=structlog.dev.plain_traceback
    )
    if not stream.isatty():
        return [console]

    def over_progress(logger: Any, name: str, event: structlog.typing.EventDict) -> str:
        """On a terminal the line may meet a progress line that is still open: write over it."""
        return f"\r\x1b[2K{console(logger, name, event)}"

    return [over_progress]


def _to_json(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


class _ToStructlog(logging.Handler):
    """What libraries log, as events of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on."""
        log = structlog.get_logger()
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def engine_line(line: str) -> None:
    """Log a line that the engine printed."""
    structlog.get_logger().info(line.removeprefix("engine: "), process="engine")
