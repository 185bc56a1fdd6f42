"""`python -m bitnet`: the command line without its script on PATH."""

from bitnet.cli.main import run

run()
