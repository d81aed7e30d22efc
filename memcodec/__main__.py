"""`python -m memcodec`: the command line."""

from memcodec_cli import main

main()
