"""Comparison tasks: documents, queries, and judgements of which documents answer which query."""

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
from embedkit_core.common.validation import is_valid_text

JUDGED = "relevance judgements from the data set"
MAX_CSV_FIELD = 1 << 27  # characters; beyond it, a quote was probably not closed
MIN_HALF_CHARACTERS = 40  # of each half of a text in `self_retrieval`


@dataclass(frozen=True, slots=True)
class Task:
    """A retrieval task.

    Attributes:
        name: Name for tables and charts.
        documents: Texts of the documents by id.
        queries: Texts of the queries by id.
        judgements: For each query id, the relevance (1 or more) of the relevant documents by id.
        validity: What scores on the task measure, shown with the results.
    """

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    judgements: Mapping[str, Mapping[str, int]]
    validity: str = JUDGED

    def __post_init__(self) -> None:
        if not self.documents or not self.queries or not any(self.judgements.values()):
            raise ConfigurationError(f"Task {self.name!r} has no documents or no judged queries.")
        self._check_texts("documents", self.documents)
        self._check_texts("queries", self.queries)
        self._check_judgements()

    def _check_texts(self, field: str, texts: Mapping[str, str]) -> None:
        for text_id, text in texts.items():
            if not isinstance(text_id, str):
                raise ConfigurationError(f"{field}: ids must be strings (got {text_id!r:.80}).")
            if not is_valid_text(text) or not text.strip():
                raise ConfigurationError(f"{field}: the text of {text_id!r} cannot be embedded. Fix or remove it.")

    def _check_judgements(self) -> None:
        if unknown := self.judgements.keys() - self.queries.keys():
            raise ConfigurationError(
                f"Task {self.name!r} has judgements of {count_noun(len(unknown), 'unknown query', 'unknown queries')}, "
                f"such as {min(map(str, unknown))!r}."
            )
        for query, judged in self.judgements.items():
            values = judged.values() if isinstance(judged, Mapping) else [judged]
            if any(isinstance(value, bool) or not isinstance(value, int) for value in values):
                raise ConfigurationError(
                    f"judgements: the relevance of documents must be integers by id, as in {{'q1': {{'d1': 1}}}} "
                    f"(got {judged!r:.80} for {query!r})."
                )
        missing = {d for judged in self.judgements.values() for d in judged} - self.documents.keys()
        if missing:
            raise ConfigurationError(
                f"Task {self.name!r} has judgements of {count_noun(len(missing), 'missing document')}, "
                f"such as {min(map(str, missing))!r}."
            )


def load_beir(folder: str | PathLike[str], split: str = "test") -> Task:
    """Return the task in a folder of BEIR layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.

    Documents consist of title, space and text, as in BEIR's own evaluation. Queries without judgements are skipped.
    Source: github.com/beir-cellar/beir, read 2026-11-25.

    Raises:
        ConfigurationError: A file is missing or a row is invalid; the message contains the line.
    """
    path = Path(folder)
    if not path.exists():
        raise ConfigurationError(f"Folder {str(folder)!r} does not exist.")
    qrels: dict[str, dict[str, int]] = {}
    for number, row in _table(path / "qrels" / f"{split}.tsv", "\t"):
        try:
            score = int(row["score"])
            if score > 0:
                qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = score
        except (KeyError, TypeError, ValueError):
            raise _invalid_row(
                path / "qrels" / f"{split}.tsv", number, "query-id, corpus-id and an integer score"
            ) from None
    documents: dict[str, str] = {}
    for number, line in _json_lines(path / "corpus.jsonl"):
        try:
            documents[line["_id"]] = f"{line.get('title', '')} {line['text']}"
        except (KeyError, TypeError):
            raise _invalid_row(path / "corpus.jsonl", number, "_id and text") from None
    queries: dict[str, str] = {}
    for number, line in _json_lines(path / "queries.jsonl"):
        try:
            if line["_id"] in qrels:
                queries[line["_id"]] = line["text"]
        except (KeyError, TypeError):
            raise _invalid_row(path / "queries.jsonl", number, "_id and text") from None
    empty = [name for name, text in documents.items() if not text.strip()]
    for name in empty:
        del documents[name]
    judgements = {query: {d: s for d, s in judged.items() if d in documents} for query, judged in qrels.items()}
    lost = sum(len(judged) - len(judgements[query]) for query, judged in qrels.items())
    judged_queries = {query: text for query, text in queries.items() if judgements.get(query)}
    validity = JUDGED
    if empty:
        validity += f"; {count_noun(len(empty), 'empty document')} skipped"
    if lost:  # BEIR's own evaluation counts them as not found
        validity += f"; {count_noun(lost, 'relevant document')} missing and ignored"
    judgements = {query: judgements[query] for query in judged_queries}
    return Task(path.resolve().name, documents, judged_queries, judgements, validity)


def load_questions(file: str | PathLike[str], *, question: str = "question", answer: str = "answer") -> Task:
    """Return a task from a CSV file with a column of questions and a column of correct answers, the documents.

    The delimiter is a comma, semicolon or tab. A question in two rows has two correct answers.

    Raises:
        ConfigurationError: The file or a column is missing, or a row is invalid; the message contains the line.
    """
    path = Path(file)
    documents: dict[str, str] = {}
    document_ids: dict[str, str] = {}
    query_ids: dict[str, str] = {}
    queries: dict[str, str] = {}
    judgements: dict[str, dict[str, int]] = {}
    for number, row in _table(path, _delimiter(path)):
        query_text, document_text = (row.get(question) or "").strip(), (row.get(answer) or "").strip()
        if not query_text or not document_text:
            raise _invalid_row(path, number, f"the columns {question!r} and {answer!r}")
        document = document_ids.setdefault(document_text, f"answer {len(document_ids) + 1}")
        documents[document] = document_text
        query = query_ids.setdefault(query_text, f"question {number}")
        queries[query] = query_text
        judgements.setdefault(query, {})[document] = 1
    return Task(path.stem, documents, queries, judgements)


def self_retrieval(texts: Iterable[str], *, name: str = "own texts") -> Task:
    """Return a task without judgements: each query is the first half of a text, its document the second half.

    A text with a title in the first line is split after the title. The scores correlate with the quality of answering
    questions about the texts, but do not measure it.

    Raises:
        ConfigurationError: Fewer than ten texts can be split.
    """
    documents: dict[str, str] = {}
    queries: dict[str, str] = {}
    for number, text in enumerate(dict.fromkeys(texts)):
        if halves := _halves(text):
            queries[str(number)], documents[str(number)] = halves
    if len(documents) < 10:
        raise ConfigurationError(
            f"texts: at least 10 texts of {2 * MIN_HALF_CHARACTERS} or more characters are required "
            f"(got {len(documents)})."
        )
    validity = "no judgements: each query is the first half of a text; valid only for ranking models"
    return Task(name, documents, queries, {query: {query: 1} for query in queries}, validity)


def _halves(text: str) -> tuple[str, str] | None:
    title, newline, body = text.strip().partition("\n")
    if newline and 8 <= len(title) <= 200 and len(body.strip()) >= MIN_HALF_CHARACTERS:
        return title.strip(), body.strip()
    middle = text.find(" ", len(text) // 2)
    first, second = text[:middle].strip(), text[middle:].strip()
    return (first, second) if middle > 0 and min(len(first), len(second)) >= MIN_HALF_CHARACTERS else None


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                raise _invalid_row(path, number, "one JSON object") from None


def _table(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(_lines(path), delimiter=delimiter)
    limit = csv.field_size_limit(MAX_CSV_FIELD)  # of the process
    try:
        for row in reader:
            if any(row.get(None) or ()):  # the key of DictReader for further values
                raise _invalid_row(path, reader.line_num, f"{len(row) - 1} values; quote a text with {delimiter!r}")
            yield reader.line_num, row
    except csv.Error as error:
        raise ConfigurationError(f"{path}, line {reader.line_num}: {error}.") from None
    finally:
        csv.field_size_limit(limit)


def _delimiter(path: Path) -> str:
    """Return the most frequent delimiter in the header of a CSV file."""
    head = next(_lines(path), "")
    return max(",;\t", key=head.count)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield from lines
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} cannot be read (it is not UTF-8). Convert it to UTF-8.") from None


def _invalid_row(path: Path, number: int, expected: str) -> ConfigurationError:
    return ConfigurationError(f"{path}, line {number}: expected {expected}.")
