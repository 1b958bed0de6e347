"""`python -m latentlens` is the command line."""

from latentlens.cli import main

main()
