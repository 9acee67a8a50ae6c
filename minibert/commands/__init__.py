"""The command lines: everything that knows arguments, exit statuses or a terminal. `scripts/` opens them."""
