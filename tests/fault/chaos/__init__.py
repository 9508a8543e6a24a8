"""The chaos run: clients whose every token is known, and a seeded schedule of faults. `python -m tests.fault.chaos`."""
