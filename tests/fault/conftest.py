"""The stacks of the e2e tests, to be broken."""

from tests.e2e.conftest import bus, own_redis, own_stack, stack

__all__ = ["bus", "own_redis", "own_stack", "stack"]
