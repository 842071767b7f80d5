"""Virtual time: emulated engines, the live scheduler's own core, and programs that come from generators or files.

What belongs here: everything that runs without a clock to find out what a policy would do.
What does not: anything that waits. The scheduler here is the one that runs live, not a model of it.
"""
