"""The rooms of the character language model demo; ``examples/char_lm.py`` is its front door."""


class DemoError(Exception):
    """Something the user can put right; its text is the one line they get to read."""
