"""What will happen next to a program, as distributions learned online from what happened before.

One rule: forecasts are advice. They are bounded in memory, cheap to ask, and carry their own calibration, and
nothing that uses them may depend on their being right. They know neither clock nor engine.
"""

from agentserve.core.forecast.calibration import Calibration
from agentserve.core.forecast.calls import CallShape, ToolCall, classify
from agentserve.core.forecast.outputs import OutputForecaster
from agentserve.core.forecast.progress import Progress, StepFacts, Todo, read_todo
from agentserve.core.forecast.remaining import Left, Remaining, RemainingForecaster
from agentserve.core.forecast.returns import ReturnForecaster
from agentserve.core.forecast.survival import Survival
from agentserve.core.forecast.tools import ToolForecaster

__all__ = [
    "Calibration",
    "CallShape",
    "Left",
    "OutputForecaster",
    "Progress",
    "Remaining",
    "RemainingForecaster",
    "ReturnForecaster",
    "StepFacts",
    "Survival",
    "Todo",
    "ToolCall",
    "ToolForecaster",
    "classify",
    "read_todo",
]
