"""The dashboards, one module each: what it asks of Prometheus and how to read the answers."""

from dashboards.boards import engines, fairness, forecasts, health, kv, overview, programs

BOARDS = (
    overview.BOARD, programs.BOARD, kv.BOARD, fairness.BOARD, forecasts.BOARD, engines.BOARD, health.BOARD
)  # fmt: skip
