"""Log lines on stderr, one format for every process."""

import logging
import sys

get_logger = logging.getLogger


def set_up_logging(level: str = "info") -> None:
    """Once per process, in its `__main__`."""
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    logging.getLogger("httpx2").setLevel(max(logging.WARNING, logging.getLogger().level))  # a line a request
