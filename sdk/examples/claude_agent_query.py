"""Claude Agent SDK, pointed at the gateway, with tool ends told in time: `python claude_agent_query.py`."""

import asyncio

from claude_agent_sdk import ClaudeAgentOptions, query

import agentserve_sdk as agentserve
from agentserve_sdk import claude_agent

agentserve.init()


@agentserve.workflow(name="fix")
async def fix(what: str) -> None:
    options = ClaudeAgentOptions(env=claude_agent.env(), hooks=claude_agent.hooks())
    async for message in query(prompt=what, options=options):
        print(message)


asyncio.run(fix("Run the tests and mend what fails."))
