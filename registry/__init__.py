"""Who is alive, what they serve, how busy they are: leases with a TTL in Redis. `python -m registry` shows them."""
