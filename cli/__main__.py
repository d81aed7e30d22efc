"""Makes `python -m memcodec_cli` run the program."""

from memcodec_cli import main

main()
