"""The `tokenbus` command: starts the other parts as processes and talks to them from outside."""
