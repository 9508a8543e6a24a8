"""Engines: what turns a prompt into tokens. Each is one `*_impl.py` behind `base.Engine`; none knows Redis."""
