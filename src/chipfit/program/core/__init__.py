"""The core dialect: operations that any chip's program can use, each with its meanings in one table (`rules.py`)."""
