"""Any server that speaks the OpenAI API over HTTP and nothing more that we know of.

Rule: assume nothing. Every mechanism is agentserve's own; the engine sees plain requests.
Servers such as `transformers serve`, llama-cpp-python's and many gateways are reached through this.
"""

from __future__ import annotations

from agentserve_adapters.detection import Recognised, Sight
from agentserve_adapters.served import ServedEngine


class OpenAIHttpAdapter(ServedEngine):
    """The plainest engine there is."""

    kind = "openai_http"

    @staticmethod
    async def recognise(sight: Sight) -> Recognised | None:
        """The last resort: it has a model list in OpenAI's shape."""
        models = await sight.table("/v1/models")
        if isinstance(models.get("data"), list):
            return Recognised(certainty=0.2, evidence="/v1/models is in OpenAI's shape")
        return None
