"""How fast the relay is, beside nginx and whatever peers are installed: `python -m tests.bench.relay.run`."""
