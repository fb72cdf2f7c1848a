"""The rooms of the character language model demo; ``examples/char_lm.py`` is its front door."""
