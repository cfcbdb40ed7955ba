"""The fast path: sampling and log-probabilities for Llama-like models, computed on packed tokens.

Packed means that the tokens of all sequences are concatenated, without padding. The functions
`sample_completions` and `token_log_probs` use this implementation if a model supports it, and the plain
implementation otherwise.
"""
