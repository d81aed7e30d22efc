"""The command line of memcodec. Each command has a Python equivalent, and imports torch only when it needs it."""

from memcodec_cli.program import main as main
