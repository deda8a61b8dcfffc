"""The demo as a person runs it: a command on this machine, which leaves nothing behind."""
