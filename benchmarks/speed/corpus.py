"""The texts of the benchmark and their vectors: equal in every process, made from a seed."""

import hashlib
import random
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the warm rows measure a client's import of numpy
    import numpy as np

SEED = 20_000
TEXTS = 20_000
DIMENSIONS = 1536

# Each is one token of cl100k_base with a space before it, so that the server and the clients count the same.
WORDS = """
the of and to in is that for it was on are as with his they at be this from have or by one had not but what all
were when we there can an your which their said if do will each about how up out them then she many some so these
would other into has more her two like him see time could no make than first been its who now people my made over
did down only way find use may water long little very after words called just where most know get through back
much before go good new write our used me man too any day same right look think also around another came come
work three word must because does part even place well such here take why things help put years different away
again off went old number great tell men say small every found still between name should home big give air line
set own under read last never us left end along while might next sound below saw something thought both few those
""".split()  # noqa: SIM905 - a list would take two hundred lines


def make_texts(n: int = TEXTS, *, mean_words: int = 60, seed: int = SEED) -> list[str]:
    """Return `n` texts of `mean_words` words on average, a third to five thirds of it each; all differ."""
    rng = random.Random(seed)
    lengths = [rng.randint(mean_words // 3, mean_words * 5 // 3) for _ in range(n)]
    words = rng.choices(WORDS, k=sum(lengths))
    ends = accumulate(lengths, initial=0)
    return [" ".join(words[start:end]) for start, end in pairwise(ends)]


def make_more_texts() -> list[str]:
    """Return 10,000 texts that are not in the corpus; all differ."""
    return [f"{text} more" for text in make_texts(10_000)]


def make_queries(n: int, *, seed: int = 1) -> list[str]:
    """Return `n` short texts that are not in the corpus; all differ."""
    return [f"{text} {number}" for number, text in enumerate(make_texts(n, mean_words=9, seed=seed))]


def count_tokens(text: str) -> int:
    """Count tokens as the server does: a word is one."""
    return text.count(" ") + 1


def vector_of(text: str) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """Return the vector that the server returns for a text: a unit vector, float32 (1536,)."""
    import numpy as np

    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    vector = np.random.default_rng(seed).standard_normal(DIMENSIONS, dtype=np.float32)
    vector /= np.sqrt(vector @ vector)
    return vector
