"""What the examples share; docs/applications.md tells how an example is put together from it.

What examples/fetch_data.py and the first line of every example import needs the standard library alone: it
works before anything is installed.
"""


class ExampleError(Exception):
    """Something the user can put right; its text is the one line they get to read."""
