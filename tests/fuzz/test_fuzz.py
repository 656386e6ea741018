"""Damaged inputs end in a ``UserError``: no traceback, no hang, no more than 1 GB, nothing half-written.

About a thousand inputs run with the suite. Any number runs by hand, from any seed and for any reader:

    IVIDEOGPT_FUZZ=100000 IVIDEOGPT_FUZZ_SEED=7 pytest tests/fuzz -k store
"""

import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import check_is_file

sys.path.insert(0, str(Path(__file__).parent))
import fuzz_mutations
from fuzz_readers import READERS, Reader

INPUTS = int(os.environ.get("IVIDEOGPT_FUZZ", 1000))
SEED = int(os.environ.get("IVIDEOGPT_FUZZ_SEED", 0))
BY_HAND = "IVIDEOGPT_FUZZ" in os.environ
SECONDS, BYTES = 20, 2**30

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits on memory and time are Linux's"),
    pytest.mark.timeout(0 if INPUTS > 1000 else 600),
]


class Hang(BaseException):
    """Not an ``Exception``: no reader may take it for damage."""


@contextlib.contextmanager
def limits(seconds):
    """End the block after some seconds, and refuse it more than ``BYTES`` of new memory."""

    def end(*_):
        raise Hang(f"more than {seconds} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def tree(folder):
    """Names and sizes of all files, links not followed."""
    return {path.relative_to(folder): path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()}


def fuzz(reader, folder, inputs, seconds=SECONDS):
    """Give ``inputs`` damaged copies of the sample to the reader.

    Raises:
        BaseException: of the first fault; by hand, after hypothesis has made its input as simple as it can.
    """
    sample, copy = folder / "sample", folder / "copy"
    sample.mkdir()
    reader.sample(sample)
    with limits(seconds):
        reader.read(sample)  # the good input is read
    files = sorted(path.relative_to(sample) for path in sample.rglob("*") if path.is_file())

    @seed(SEED)
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink] if BY_HAND else [Phase.generate],  # making it simple takes minutes
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(fuzz_mutations.mutations)
    def run(mutations):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(sample, copy)
        for position, mutation in mutations:
            fuzz_mutations.apply(copy / files[int(position * len(files))], mutation)
        before = tree(copy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with limits(seconds):
                    reader.read(copy)
            except UserError as error:
                assert str(error).strip(), "an empty sentence"
                assert "\n" not in str(error), f"more than one line: {error}"
        gc.collect(0)
        if not reader.writes:
            assert tree(copy) == before, "something was written"

    run()


@pytest.mark.parametrize("name", READERS)
def test_damaged_inputs_are_one_sentence(name, tmp_path):
    fuzz(READERS[name], tmp_path, -(-INPUTS // len(READERS)))


def json_sample(folder):
    (folder / "a.json").write_text(json.dumps({"rows": 3, "names": ["a", "b"]}))


def json_of(folder):
    check_is_file(folder / "a.json")
    try:
        return json.loads((folder / "a.json").read_text())
    except Exception as error:
        raise UserError("a.json is damaged") from error


def forgets_a_type(folder):
    json_of(folder)["rows"] + 1


def takes_what_is_asked(folder):
    rows = json_of(folder)
    if isinstance(rows, dict) and isinstance(rows.get("rows"), int) and rows["rows"] > 2**30:
        bytearray(2**31)


def waits_for_ever(folder):
    with (folder / "a.json").open() as file:
        file.read(1)


def writes_beside_it(folder):
    if folder.name == "copy":
        (folder / "b.json.part").write_text("half")
    json_of(folder)


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (forgets_a_type, (TypeError, KeyError)),
        (takes_what_is_asked, MemoryError),
        (waits_for_ever, (Hang, OSError, UnicodeDecodeError)),
        (writes_beside_it, AssertionError),
    ],
)
def test_each_kind_of_fault_is_found(read, fault, tmp_path):
    with pytest.raises(BaseException) as caught:
        fuzz(Reader(json_sample, read), tmp_path, 150, seconds=1)
    errors = getattr(caught.value, "exceptions", [caught.value])
    assert any(isinstance(error, fault) for error in errors), errors
