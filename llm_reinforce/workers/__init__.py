"""Worker processes that answer questions and can be killed: whatever happens there, the caller continues."""

from llm_reinforce.workers.pool import WorkerError, WorkerPool, WorkerSettingsError, WorkerTimeoutError
from llm_reinforce.workers.service import limit_memory, serve

__all__ = [
    "WorkerError",
    "WorkerPool",
    "WorkerSettingsError",
    "WorkerTimeoutError",
    "limit_memory",
    "serve",
]
