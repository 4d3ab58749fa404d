"""The text of a Usage."""

from decimal import Decimal

from support.rows import check_rows

from embedkit_core import Usage


def test_usage_is_printed_in_one_line_without_zero_counts():
    def check(row):
        usage, text = row
        assert str(usage) == text

    check_rows(
        [
            (Usage(), "0 texts, 0 requests"),
            (Usage(texts=20_000, cache_hits=20_000), "20,000 texts, 20,000 from cache, 0 requests"),
            (Usage(texts=1, sent=1, requests=1), "1 text, 1 sent, 1 request"),
            (
                Usage(texts=9, cache_hits=2, duplicates=1, coalesced=3, sent=2, failed=1, requests=3, retries=2),
                "9 texts, 2 from cache, 1 duplicate, 3 coalesced, 2 sent, 1 failed, 3 requests (2 retries)",
            ),
            (
                Usage(texts=1, sent=1, requests=1, tokens=100_000, priced_usd=Decimal("0.00200")),
                "1 text, 1 sent, 1 request, 100,000 tokens, $0.002",
            ),
            (
                Usage(texts=1, sent=1, requests=1, tokens=5, unpriced_tokens=5),
                "1 text, 1 sent, 1 request, 5 tokens, price unknown",
            ),
            (Usage(texts=1, sent=1, requests=1, tokens=5), "1 text, 1 sent, 1 request, 5 tokens, $0"),
            (
                Usage(texts=1, sent=1, requests=1, tokens=5, priced_usd=Decimal(30)),
                "1 text, 1 sent, 1 request, 5 tokens, $30.00",
            ),
        ],
        check,
    )


def test_the_difference_of_two_readings_is_what_was_added_between_them():
    earlier = Usage(texts=3, sent=3, requests=1, tokens=7, priced_usd=Decimal("0.07"), saved_usd=Decimal("0.5"))
    added = Usage(
        texts=2, cache_hits=2, tokens=1, priced_usd=Decimal("0.01"), saved_tokens=4, saved_usd=Decimal("0.25")
    )
    assert ((earlier + added) - earlier).to_dict() == added.to_dict()
    unknown = Usage(cache_hits=1, saved_tokens=2, saved_usd=None, possibly_billed_usd=None)
    assert ((earlier + unknown) - earlier).to_dict() == unknown.to_dict()
