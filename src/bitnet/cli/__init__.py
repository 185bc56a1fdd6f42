"""The command line: `main.py` holds the program, every other file one verb."""
