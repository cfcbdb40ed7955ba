"""What people see in a terminal: tables, progress, the live view, and text made safe to print."""
