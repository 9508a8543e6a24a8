"""The wire contract between gateway and worker: keys, messages, errors, the job queue, the connection."""

__version__ = "0.1.0"
