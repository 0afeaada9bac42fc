"""Run the edge: `python -m graphql_edge`."""

from __future__ import annotations

from graphql_edge import serving
from graphql_edge.settings import EdgeSettings
from mesh import server
from mesh.settings import Runtime, load


async def main() -> None:
    """Serve until a signal."""
    await serving.run(load(Runtime), load(EdgeSettings))


if __name__ == "__main__":
    server.run(main())
