"""Step graphs: declared by clients, learned from traffic, and what follows from them for a program's future.

    graph = WorkflowGraph.parse(json)                        or BadRequest that names the field
    learned = LearnedGraph(declared=graph)
    learned.observe_step(node, previous=[before], output_tokens=120, seconds=2.1, gap_s=0.4)
    learned.remaining(node)      learned.next_nodes(node)    learned.steps_to(node)
    render_text(learned)         render_dot(learned)         render_svg(learned)

    graphs = StepGraphs()        graphs.tell(event, now)     learns every workflow's graph from the scheduler's events

networkx is used here and nowhere else.
"""

from agentserve.core.workflow.declared import Edge, Node, WorkflowGraph
from agentserve.core.workflow.learned import LearnedGraph, Next, Remaining, node_name
from agentserve.core.workflow.observer import StepGraphs
from agentserve.core.workflow.picture import picture_of, render_dot, render_text
from agentserve.core.workflow.svg import render_svg

__all__ = [
    "Edge",
    "LearnedGraph",
    "Next",
    "Node",
    "Remaining",
    "StepGraphs",
    "WorkflowGraph",
    "node_name",
    "picture_of",
    "render_dot",
    "render_svg",
    "render_text",
]
