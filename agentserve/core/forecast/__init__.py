"""What will happen next to a program, as distributions learned online from what happened before.

One rule: forecasts are advice. They are bounded in memory, cheap to ask, and carry their own calibration, and
nothing that uses them may depend on their being right. They know neither clock nor engine.
"""

from agentserve.core.forecast.calls import CallShape, ToolCall, classify
from agentserve.core.forecast.survival import Survival
from agentserve.core.forecast.tools import ToolForecaster

__all__ = ["CallShape", "Survival", "ToolCall", "ToolForecaster", "classify"]
