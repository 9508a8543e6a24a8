"""Claims jobs, runs one engine, publishes tokens. `python -m worker`; engines under worker.engines."""
