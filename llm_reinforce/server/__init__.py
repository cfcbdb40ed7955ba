"""Client of a vLLM server that samples the episodes of a run, and the command that starts the server."""

from llm_reinforce.server.http_client import HttpClient, ServerError
from llm_reinforce.server.sampling_server import SERVER_METRICS, SamplingServer, Served
from llm_reinforce.server.weight_files import server_directory

__all__ = ["SERVER_METRICS", "HttpClient", "SamplingServer", "Served", "ServerError", "server_directory"]
