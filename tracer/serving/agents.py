"""The tools as a server of the Model Context Protocol, on standard input and output.

Needs the package `mcp` (extra `mcp`), imported here and nowhere else. Opens no socket.
"""

from typing import Any

import anyio
from anyio import to_thread
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    TextContent,
    ToolAnnotations,
)
from mcp_types import Tool as Described

from graphs import GraphError
from graphs.words import visible
from replacement_models.errors import ModelError
from tracer.errors import TraceError
from tracer.serving.arguments import schema_of
from tracer.serving.tools import TOOLS, Tools

INSTRUCTIONS = (
    "Attribution graphs of a language model: trace a prompt, then look at what led to its next "
    "token and test it. Begin with show (lists saved graphs) or trace. Nodes are named by ids: "
    "2_311_8 is feature 311 of layer 2 at position 8, E_..: a token, L_-1_P: an error (what no "
    "feature explains). Influence is the part of the answer that passes through a node. A path is "
    "a hypothesis: intervene or validate before you believe it."
)
OURS = (GraphError, ModelError, TraceError)


def server_of(tools: Tools) -> "Server[Any]":
    """A server that offers the tools.

    Args:
        tools: over a folder and a model.

    Returns:
        A server of the package mcp; `serve` runs it on standard input and output.
    """

    async def list_tools(*_: Any) -> ListToolsResult:
        return ListToolsResult(
            tools=[
                Described(
                    name=name,
                    description=tool.says,
                    input_schema=schema_of(tool.arguments),
                    annotations=ToolAnnotations(
                        read_only_hint=not tool.writes, open_world_hint=False
                    ),
                )
                for name, tool in TOOLS.items()
            ]
        )

    async def call_tool(_: Any, params: CallToolRequestParams) -> CallToolResult:
        return await to_thread.run_sync(answered, tools, params.name, params.arguments or {})

    return Server(
        "tracer", instructions=INSTRUCTIONS, on_list_tools=list_tools, on_call_tool=call_tool
    )


def answered(tools: Tools, name: str, given: dict[str, Any]) -> CallToolResult:
    """The answer to a call, or in one line why there is none."""
    try:
        return _said(tools.call(name, given))
    except OURS as error:
        return _said(" ".join(str(error).splitlines()), failed=True)
    except OSError as error:
        return _said(f"{error.filename}: {error.strerror}" if error.strerror else
                     f"this is a fault of tracer: {type(error).__name__}", failed=True)  # fmt: skip
    except Exception as error:
        return _said(f"this is a fault of tracer: {type(error).__name__}", failed=True)


def _said(text: str, failed: bool = False) -> CallToolResult:
    shown = visible(text)[:2000] if failed else text
    return CallToolResult(content=[TextContent(text=shown)], is_error=failed)


def serve(tools: Tools) -> None:
    """Answer on standard input and output until the input ends."""

    async def run() -> None:
        server = server_of(tools)
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    anyio.run(run)
