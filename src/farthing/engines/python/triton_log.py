"""How Triton's Python models write to the server's log: `pb_utils.Logger`."""

import logging
from typing import Final


class Logger:
    """Writes to the server's log, by level."""

    @staticmethod
    def log(message: str, level: int | None = None) -> None:
        _LOG.log(logging.INFO if level is None else _LEVELS.get(level, logging.INFO), message)

    @staticmethod
    def log_info(message: str) -> None:
        _LOG.info(message)

    @staticmethod
    def log_warn(message: str) -> None:
        _LOG.warning(message)

    @staticmethod
    def log_error(message: str) -> None:
        _LOG.error(message)

    @staticmethod
    def log_verbose(message: str) -> None:
        _LOG.debug(message)

    INFO, WARNING, ERROR, VERBOSE = range(4)


_LEVELS: Final = {
    Logger.INFO: logging.INFO,
    Logger.WARNING: logging.WARNING,
    Logger.ERROR: logging.ERROR,
    Logger.VERBOSE: logging.DEBUG,
}
_LOG: Final = logging.getLogger("triton_python_backend_utils")
