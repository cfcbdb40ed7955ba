"""Terminal output: tables, progress, the live view of a run, and text escaped for printing."""
