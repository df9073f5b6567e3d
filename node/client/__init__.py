"""The Python client: `from node import Client, SyncClient`.

What to send, whom to ask next and when to give up is decided once, by generators that do no IO (`calls`, `asking`,
`nodes`, `stream`); `Client` carries them out with aiohttp, `SyncClient` with the standard library.
"""
