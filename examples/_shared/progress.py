"""The progress bar of an epoch."""

from typing import Any

from tqdm import tqdm


def progress(description: str, total: int, done: int, **options: Any) -> tqdm:
    """On stderr, and gone when the epoch ends: its line of results takes the place."""
    return tqdm(desc=description, total=total, initial=done, mininterval=0.5, leave=False, **options)
