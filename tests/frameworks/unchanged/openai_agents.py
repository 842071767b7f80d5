"""OpenAI Agents SDK, over responses as it comes."""

from agents import Agent, Runner, function_tool, set_tracing_disabled

set_tracing_disabled(True)  # its traces go to the vendor


@function_tool
def search(q: str) -> str:
    """Search the web."""
    return "three cities"


async def run(question: str) -> str:
    agent = Agent(name="researcher", instructions="You research.", tools=[search], model="emulated")
    return (await Runner.run(agent, question)).final_output
