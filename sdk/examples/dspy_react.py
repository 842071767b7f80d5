"""DSPy, unchanged but for two lines: `python dspy_react.py`."""

import os

import dspy

import agentserve_sdk as agentserve

agentserve.init()
URL = os.environ.get("AGENTSERVE_URL", "http://127.0.0.1:8400")


def search(q: str) -> str:
    """Search the web."""
    return f"nothing new about {q}"


dspy.configure(
    lm=dspy.LM(f"openai/{os.environ.get('MODEL', 'emulated')}", api_base=f"{URL}/v1", api_key="none")
)
print(dspy.ReAct("question->answer", tools=[search], max_iters=3)(question="What is new?").answer)
