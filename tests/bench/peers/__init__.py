"""agentserve beside its neighbours: the same agents, the same emulated engines, real HTTP, one router after the other.

python -m tests.bench.peers.install DIR               # the peers, each in an environment of its own
python -m tests.bench.peers.run --peers DIR --out FILE  # measure what is not in FILE yet
python -m tests.bench.peers.report FILE --plot SVG      # one table, one plot
"""
