"""The bus, measured: `python -m bench.bus`. One table, one plot, the raw figures, and what was aimed at."""
