"""The command lines: everything that knows arguments, exit statuses or a terminal.

The files in `scripts/` call them.
"""
