"""The command line: Punctual over its REST API. Imports nothing of the server, and so fits any that speaks the API."""
