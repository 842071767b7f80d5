"""Metrics and traces: what other systems are shown.

    telemetry = Recorder(settings.telemetry)
    driver.listen(telemetry.watch)
    content_type, text = telemetry.render(accept)

Rule: nothing here waits, raises into a request, or keeps text of one. Names stand once: metrics in `metrics`,
attributes in `conventions`.
"""

from agentserve.telemetry.recorder import Recorder

__all__ = ["Recorder"]
