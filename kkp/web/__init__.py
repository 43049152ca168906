"""The edge: only here are aiohttp and status codes."""
