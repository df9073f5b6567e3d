"""The Python client: `from node import Client, SyncClient`.

Pure parts decide once what to send, which node to ask next and when to give up (`calls`, `asking`, `nodes`, `stream`);
`Client` carries their steps out with aiohttp, `SyncClient` with the standard library.
"""
