"""Directions in the files of other tools, one file a format; `files` reads and writes them all."""
