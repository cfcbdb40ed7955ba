"""Worker processes that answer questions. A worker that hangs or crashes does not affect its caller."""

from llm_reinforce.workers.pool import (
    START_LIMIT,
    WorkerError,
    WorkerPool,
    WorkerSettingsError,
    WorkerTimeoutError,
)
from llm_reinforce.workers.service import limit_memory, serve

__all__ = [
    "START_LIMIT",
    "WorkerError",
    "WorkerPool",
    "WorkerSettingsError",
    "WorkerTimeoutError",
    "limit_memory",
    "serve",
]
