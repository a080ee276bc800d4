"""``python -m gancompress`` is the command line."""

from gancompress.cli import main

main()
