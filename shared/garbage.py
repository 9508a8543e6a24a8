"""Python's garbage collector, kept from what will never be garbage."""

import gc


def spare_what_is_loaded() -> None:
    """A full collection looks at every object and stops the process meanwhile: for 0.3 to 0.5 s in a worker with torch,
    25 ms in a gateway. Called at the end of a start, it leaves to the collector what comes after."""
    gc.collect()
    gc.freeze()
