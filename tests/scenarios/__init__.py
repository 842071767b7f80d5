"""Long runs of the real product, by hand: `python -m tests.scenarios.chaos`, `python -m tests.scenarios.soak`."""
