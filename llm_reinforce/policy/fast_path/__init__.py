"""The packed implementation for Llama-like models on a CPU, behind `sample_completions` and `token_log_probs`."""
