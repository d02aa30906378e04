"""``python -m fedlog`` is the ``fedlog`` command."""

from fedlog.cli.main import main

main()
