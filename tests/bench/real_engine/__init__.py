"""Agents on a real vLLM, with and without a proxy that knows of programs: `python -m tests.bench.real_engine.run`."""
