"""Where the examples' data comes from: files that published packages hold, found or fetched."""

import os
import random
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from . import ExampleError

_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}


class MissingData(ExampleError):
    """Neither installed, nor cached, nor where --data says."""


@dataclass(frozen=True)
class DataSet:
    """Files of one package's archive.

    members: by the name that a file has here, its path in the archive; more than one where an archive holds
    another. In a wheel that is the path that an installed package has it at.
    """

    package: str
    version: str
    kind: str  # "wheel" or "sdist"
    licence: str
    members: Mapping[str, tuple[str, ...]]

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


def _in_wheel(folder: str, *names: str) -> dict[str, tuple[str, ...]]:
    return {Path(name).name: (f"{folder}/{name}",) for name in names}


def _catalogues(language: str) -> dict[str, tuple[str, ...]]:
    names = [f"iso{standard}.mo" for standard in ("15924", "3166-1", "3166-2", "3166-3", "4217", "639-3")]
    return _in_wheel(f"pycountry/locales/{language}/LC_MESSAGES", *names)


def _series(name: str) -> dict[str, tuple[str, ...]]:
    return _in_wheel(f"aeon/datasets/data/{name}", f"{name}_TRAIN.ts", f"{name}_TEST.ts")


DATA_SETS = {
    "movie-snippets": DataSet(
        "vaderSentiment",
        "3.3.2",
        "sdist",
        "MIT",
        {
            "movieReviewSnippets_GroundTruth.txt": (
                "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
                "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
            )
        },
    ),
    "names-ja": DataSet("pycountry", "26.2.16", "wheel", "LGPL-2.1", _catalogues("ja")),
    "names-fr": DataSet("pycountry", "26.2.16", "wheel", "LGPL-2.1", _catalogues("fr")),
    "japanese-vowels": DataSet("aeon", "1.6.0", "wheel", "BSD-3-Clause", _series("JapaneseVowels")),
    "gestures": DataSet("aeon", "1.6.0", "wheel", "BSD-3-Clause", _series("PickupGestureWiimoteZ")),
    "digits": DataSet(
        "scikit-learn",
        "1.9.1",
        "wheel",
        "BSD-3-Clause",
        _in_wheel("sklearn/datasets/data", "digits.csv.gz"),
    ),
    "co2": DataSet(
        "statsmodels", "0.15.0", "wheel", "BSD-3-Clause", _in_wheel("statsmodels/datasets", "co2/co2.csv")
    ),
    "sunspots": DataSet(
        "statsmodels",
        "0.15.0",
        "wheel",
        "BSD-3-Clause",
        _in_wheel("statsmodels/datasets", "sunspots/sunspots.csv"),
    ),
}


def cache_folder(name: str) -> Path:
    """Where examples/fetch_data.py puts the files of a set."""
    cache = os.environ.get("RNNFUSED_DATA")
    return (Path(cache) if cache else Path.home() / ".cache" / "rnnfused" / "data") / name


def find(name: str, given: Path | None = None) -> dict[str, Path]:
    """The files of a set by their names: in `given` where there is one, else from the installed package, else
    from the cache. given: a folder that holds them all, or the file of a set that has only one.

    Raises:
        MissingData: naming what would help.
    """
    data_set = DATA_SETS[name]
    if given is not None:
        return _in_place(data_set, given)
    for found in (_installed(data_set), _in_folder(data_set, cache_folder(name))):
        if found and all(path.is_file() for path in found.values()):
            return found
    raise MissingData(
        f"no data: {name} is neither in an installed {data_set.package} nor in {cache_folder(name)}: "
        f"`make data` fetches it from {data_set.requirement}, --data PATH names a copy"
    )


def _in_place(data_set: DataSet, given: Path) -> dict[str, Path]:
    if given.is_file() and len(data_set.members) == 1:
        return {name: given for name in data_set.members}
    found = _in_folder(data_set, given)
    for path in found.values():
        if not path.is_file():
            raise MissingData(f"--data: no file {path}")
    return found


def _in_folder(data_set: DataSet, folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in data_set.members}


def _installed(data_set: DataSet) -> dict[str, Path]:
    """What a wheel that is installed has put there; without importing it."""
    if data_set.kind != "wheel":
        return {}
    try:
        installed = distribution(data_set.package)
    except PackageNotFoundError:
        return {}
    return {name: Path(str(installed.locate_file(path[0]))) for name, path in data_set.members.items()}


def library_sources() -> Iterator[Path]:
    """The standard library's Python files, in an order that does not depend on the file system."""
    for folder, subfolders, files in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = sorted(set(subfolders) - _NOT_THE_LIBRARY)
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def shuffled_split(count: int, *shares: float) -> list[list[int]]:
    """The numbers below `count` in an order that is always the same, cut in parts: the rest, for training,
    then one for each share, of at least one number.

    Raises:
        ExampleError: when a part would be empty.
    """
    if count <= len(shares):
        raise ExampleError(
            f"expected at least {len(shares) + 1} items, to train on and to hold out, got {count}: "
            "--limit must be at least that"
        )
    numbers = list(range(count))
    random.Random(0).shuffle(numbers)
    parts = []
    for share in shares:
        size = max(1, int(count * share))
        parts.append(numbers[:size])
        numbers = numbers[size:]
    return [numbers, *parts]
