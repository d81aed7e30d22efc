"""`python -m memcodec_cli`."""

from memcodec_cli import main

main()
