"""What models are compared on: documents, queries, and which documents answer which query."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import count_noun

JUDGED = "judged by people, or by whoever made the data set"
SHORTEST = 40  # characters that either half of a text has at least, where a text is to find its other half


@dataclass(frozen=True, slots=True)
class Task:
    """Documents and queries by id, and for each query the documents that answer it, by how well (1 or more).

    `worth` says what a score on it is worth, for whoever reads the results.
    """

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    judgements: Mapping[str, Mapping[str, int]]
    validity: str = JUDGED

    def __post_init__(self) -> None:
        if not self.documents or not self.queries:
            raise ConfigurationError(f"the task {self.name!r} has no documents, or no query that is judged")
        strangers = {d for judged in self.judgements.values() for d in judged} - self.documents.keys()
        if strangers:
            raise ConfigurationError(
                f"the judgements of {self.name!r} name {len(strangers)} missing documents, as {min(strangers)!r}"
            )


def load_beir(folder: str | PathLike[str], split: str = "test") -> Task:
    """Read a folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.

    A document is its title, a space and its text, as BEIR's own evaluation has it; queries without a judgement are left
    out. Source: github.com/beir-cellar/beir, read 2026-11-25.

    Raises:
        ConfigurationError: a file is missing or a row is broken, naming the line.
    """
    place = Path(folder)
    qrels: dict[str, dict[str, int]] = {}
    for number, row in _table(place / "qrels" / f"{split}.tsv", "\t"):
        try:
            score = int(row["score"])
            if score > 0:
                qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = score
        except (KeyError, TypeError, ValueError):
            raise _broken(place / "qrels" / f"{split}.tsv", number, "query-id, corpus-id and a whole score") from None
    documents: dict[str, str] = {}
    for number, line in _json_lines(place / "corpus.jsonl"):
        try:
            documents[line["_id"]] = f"{line.get('title', '')} {line['text']}"
        except (KeyError, TypeError):
            raise _broken(place / "corpus.jsonl", number, "_id and text") from None
    queries: dict[str, str] = {}
    for number, line in _json_lines(place / "queries.jsonl"):
        try:
            if line["_id"] in qrels:
                queries[line["_id"]] = line["text"]
        except (KeyError, TypeError):
            raise _broken(place / "queries.jsonl", number, "_id and text") from None
    empty = [name for name, text in documents.items() if not text.strip()]
    for name in empty:
        del documents[name]
    known = {query: {d: s for d, s in judged.items() if d in documents} for query, judged in qrels.items()}
    lost = sum(len(judged) - len(known[query]) for query, judged in qrels.items())
    judged_queries = {query: text for query, text in queries.items() if known.get(query)}
    worth = JUDGED
    if empty:
        worth += f"; {count_noun(len(empty), 'empty document')} left out"
    if lost:  # which BEIR's own evaluation counts as never found
        worth += f"; {count_noun(lost, 'right answer')} not among the documents, and not looked for"
    return Task(
        place.resolve().name, documents, judged_queries, {query: known[query] for query in judged_queries}, worth
    )


def load_questions(file: str | PathLike[str], *, question: str = "question", answer: str = "answer") -> Task:
    """Read a CSV file of questions and right answers, a column each; the answers are the documents.

    Commas, semicolons or tabs part the columns. A question that stands there twice has two right answers.

    Raises:
        ConfigurationError: the file or a column is missing, or a row is broken, naming the line.
    """
    place = Path(file)
    documents: dict[str, str] = {}
    ids: dict[str, str] = {}
    asks: dict[str, str] = {}
    queries: dict[str, str] = {}
    judgements: dict[str, dict[str, int]] = {}
    for number, row in _table(place, _delimiter(place)):
        asked, right = (row.get(question) or "").strip(), (row.get(answer) or "").strip()
        if not asked or not right:
            raise _broken(place, number, f"the columns {question!r} and {answer!r}")
        document = ids.setdefault(right, f"answer {len(ids) + 1}")
        documents[document] = right
        query = asks.setdefault(asked, f"question {number}")
        queries[query] = asked
        judgements.setdefault(query, {})[document] = 1
    return Task(place.stem, documents, queries, judgements)


def self_retrieval(texts: Iterable[str], *, name: str = "own texts") -> Task:
    """Make a task of texts alone: the first half of each is to find its second half among all second halves.

    A text whose first line is a title is cut there. It tells how well a model recognises what belongs together in these
    texts, which goes with how well it answers questions about them, and is not the same.

    Raises:
        ConfigurationError: fewer than ten texts can be cut in two.
    """
    documents: dict[str, str] = {}
    queries: dict[str, str] = {}
    for number, text in enumerate(dict.fromkeys(texts)):
        if halves := _halves(text):
            queries[str(number)], documents[str(number)] = halves
    if len(documents) < 10:
        raise ConfigurationError(
            f"self_retrieval needs ten texts of {2 * SHORTEST} characters or more, and {len(documents)} are such"
        )
    worth = "no judgements: the first half of each text has to find its second half; good for a ranking of models only"
    return Task(name, documents, queries, {query: {query: 1} for query in queries}, worth)


def _halves(text: str) -> tuple[str, str] | None:
    title, newline, body = text.strip().partition("\n")
    if newline and 8 <= len(title) <= 200 and len(body.strip()) >= SHORTEST:
        return title.strip(), body.strip()
    middle = text.find(" ", len(text) // 2)
    first, second = text[:middle].strip(), text[middle:].strip()
    return (first, second) if middle > 0 and min(len(first), len(second)) >= SHORTEST else None


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                raise _broken(path, number, "one JSON object") from None


def _table(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(_lines(path), delimiter=delimiter)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise ConfigurationError(f"{path}, line {reader.line_num}: {error}") from None


def _delimiter(path: Path) -> str:
    """Give what parts the columns of a CSV file: what its head has."""
    head = next(_lines(path), "")
    return max(",;\t", key=head.count)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield from lines
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} cannot be read (it is not UTF-8)") from None


def _broken(path: Path, number: int, wanted: str) -> ConfigurationError:
    return ConfigurationError(f"{path}, line {number}: expected {wanted}")
