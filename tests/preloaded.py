"""What Tokenbus's processes import, imported once: tests fork most of them off a process that has it (`forked.py`).

Torch, transformers and what the engines take from them cost a start 5 s of CPU time, the gateway costs 0.6 s.
"""

# ruff: noqa: F401

import gc
import os
import sys

os.environ["TQDM_DISABLE"] = "1"  # read at import; the transformers engine sets it before

import cli.__main__
import gateway.__main__
import registry.__main__
import worker.__main__
import worker.engines.echo_impl
import worker.engines.embedding
import worker.engines.generation
import worker.engines.gguf_file
import worker.engines.rerank
import worker.engines.transformers_impl

for package in ("cli", "gateway", "registry", "worker"):
    del sys.modules[f"{package}.__main__"]  # each is run as such
gc.collect()
gc.freeze()  # no collection of a child's looks at it, or copies it
