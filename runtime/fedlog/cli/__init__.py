"""The `fedlog` command: thin over the classes that do the work, one file per command.

Nothing heavy is imported before a command runs: `fedlog --help` is for impatient people.
"""
