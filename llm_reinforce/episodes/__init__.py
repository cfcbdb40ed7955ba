"""Episodes: problems with sampled completions, verdicts, rewards and advantages."""

from llm_reinforce.episodes.collect import collect_episodes
from llm_reinforce.episodes.episode import Episode, EpisodeBatch
from llm_reinforce.episodes.estimate import Estimate, estimate_advantages

__all__ = ["Episode", "EpisodeBatch", "Estimate", "collect_episodes", "estimate_advantages"]
