"""Replays recorded tool calls and programs through the forecasters, and scores what they said.

One rule: a forecast is made before its outcome is seen, and an outcome is learned only once the call had ended:
the replay never looks ahead. It reads rows, not files, and prints nothing.
"""

from agentserve.core.forecast.evaluation.calls import Report, evaluate_calls
from agentserve.core.forecast.evaluation.programs import ProgramsReport, evaluate_programs
from agentserve.core.forecast.evaluation.rows import CallRow, ProgramRow, call_row, program_row

__all__ = [
    "CallRow",
    "ProgramRow",
    "ProgramsReport",
    "Report",
    "call_row",
    "evaluate_calls",
    "evaluate_programs",
    "program_row",
]
