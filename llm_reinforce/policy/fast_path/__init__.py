"""The packed implementation for Llama-like models, behind the same two functions as the plain one."""
