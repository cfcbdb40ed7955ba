"""Terminal output: tables, progress, the live view, and text escaped for printing."""
