"""The packed implementation for Llama-like models, used by the same two functions as the plain one."""
