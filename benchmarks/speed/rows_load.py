"""Rows about billing and load: duplicates, concurrent queries, a token bucket, faults, a killed process."""

from benchmarks.speed.bench import Bench, Group, Measure
from benchmarks.speed.corpus import count_tokens, make_texts
from benchmarks.speed.table import Results, Row, failure, median, shown

DISTINCT = 5000


def distinct(bench: Bench) -> Group:
    """20,000 texts of which 5,000 are distinct."""
    options = {"distinct": DISTINCT}
    return Group(
        {
            "core": Measure(bench.setting("core", options=options), once=True),
            "langchain": Measure(bench.setting("langchain", asynchronous=True, options=options), once=True),
            "peer-llamaindex": Measure(bench.setting("peer-llamaindex", asynchronous=True, options=options), once=True),
        },
        _distinct_rows,
    )


def _distinct_rows(results: Results) -> list[Row]:
    peer = shown(median(results, "peer-llamaindex", "billed"), "billed")
    rows = []
    for client in ("core", "langchain"):
        billed = median(results, client, "billed")
        ours = shown(billed, "billed") or failure(results, client)
        what = f"20,000 texts, 5,000 distinct, {client}"
        rows.append(
            Row(what=what, ours=ours, peer=f"{peer} (llamaindex)", figure="5,000 billed", met=billed == DISTINCT)
        )
    return rows


CROWD = 200
CROWD_SLOTS = 16
CROWD_TIMES = 2.5  # request times


def crowd(bench: Bench) -> Group:
    """200 queries at once, of one text or all different."""

    def measure(client: str, *, same: bool) -> Measure:
        options = {"same": same}
        setting = bench.setting(client, task="crowd", n_texts=CROWD, slots=CROWD_SLOTS, options=options)
        return Measure(setting, {"prepare": ["tokens"]})

    clients = ("core", "langchain", "llamaindex", "peer-langchain", "peer-llamaindex")
    measures = {
        f"{client} {kind}": measure(client, same=kind == "one text") for client in clients for kind in _CROWD_LIMITS
    }
    return Group(measures, _crowd_rows)


_CROWD_LIMITS = {"one text": 1, "distinct": 2 * CROWD_SLOTS + 3}


def _crowd_rows(results: Results) -> list[Row]:
    rows = []
    for kind, limit in _CROWD_LIMITS.items():
        for client in ("core", "langchain", "llamaindex"):
            peer = f"peer-{client if client == 'llamaindex' else 'langchain'}"
            requests, times = (median(results, f"{client} {kind}", f) for f in ("crowd_requests", "request_times"))
            theirs, their_times = (median(results, f"{peer} {kind}", f) for f in ("crowd_requests", "request_times"))
            rows.append(
                Row(
                    what=f"200 queries at once, {kind}, {client}",
                    ours=_requests(requests, times) or failure(results, f"{client} {kind}"),
                    peer=f"{_requests(theirs, their_times)} ({peer.removeprefix('peer-')})",
                    figure=f"<= {limit} requests, <= {CROWD_TIMES:g} request times",
                    met=requests is not None and times is not None and requests <= limit and times <= CROWD_TIMES,
                )
            )
    return rows


def _requests(requests: float | None, times: float | None) -> str:
    return (
        ""
        if requests is None or times is None
        else f"{requests:.0f} request{'s'[: requests != 1]}, {times:.1f} request times"
    )


RATE = 30_000.0  # tokens a second
BURST = 125_000.0
BUCKET_TEXTS = 8000
HEADER_SETTINGS = {  # what refusals and answers say of the bucket, and how near to the ideal a client gets with it
    "headers and Retry-After": ({"sends_limits": True, "sends_retry_after": True}, 1.05),
    "no headers": ({"sends_limits": False, "sends_retry_after": False}, 1.1),
    "Retry-After only": ({"sends_limits": False, "sends_retry_after": True}, 1.1),
}
MAX_REFUSED = 0.05


def bucket(bench: Bench) -> Group:
    """8,000 texts through a bucket that lets 30,000 tokens a second pass, after 125,000 at once."""

    def measure(client: str, settings: dict[str, bool], *, asynchronous: bool = False) -> Measure:
        setting = bench.setting(client, n_texts=BUCKET_TEXTS, asynchronous=asynchronous)
        return Measure(setting, {"rate": RATE, "burst": BURST, "prepare": ["tokens"], **settings}, once=True)

    everything = HEADER_SETTINGS["headers and Retry-After"][0]
    measures = {kind: measure("core", settings) for kind, (settings, _) in HEADER_SETTINGS.items()}
    measures["peer-llamaindex"] = measure("peer-llamaindex", everything, asynchronous=True)
    measures["peer-langchain"] = measure("peer-langchain", everything)
    return Group(measures, _bucket_rows)


def _bucket_rows(results: Results) -> list[Row]:
    tokens = sum(map(count_tokens, make_texts(BUCKET_TEXTS)))
    ideal = (tokens - BURST) / RATE
    peers = ", ".join(
        _bucket_outcome(results, f"peer-{peer}", ideal, f" ({peer})") for peer in ("langchain", "llamaindex")
    )
    rows = []
    for kind, (_, most) in HEADER_SETTINGS.items():
        result = results[kind][0]
        met = (
            "wall" in result
            and round(result["wall"] / ideal, 2) <= most
            and result["refused"] <= MAX_REFUSED * result["requests"]
            and result["billed_again"] == 0
        )
        rows.append(
            Row(
                what=f"429s: 8,000 texts, 30,000 tokens/s, {kind}",
                ours=_bucket_outcome(results, kind, ideal),
                peer=peers if kind == "headers and Retry-After" else "",
                ratio=f"{result['wall'] / ideal:.2f}x ideal ({ideal:.1f} s)" if "wall" in result else "",
                figure=f"{most:g}x ideal, <= {MAX_REFUSED:.0%} refused, none billed twice",
                met=met,
            )
        )
    return rows


def _bucket_outcome(results: Results, name: str, ideal: float, whose: str = "") -> str:
    result = results[name][0]
    refused = f"{result['refused']} of {result['requests']} refused"
    if "wall" not in result:
        return f"{failure(results, name)}, {refused}{whose}"
    again = f", {result['billed_again']} billed twice" if result["billed_again"] else ""
    return f"{result['wall'] / ideal:.2f}x, {refused}{again}{whose}"


def faults(bench: Bench) -> Group:
    """5 % of requests answered by a 500, 3 % cut off, half of those after the work."""
    server = {"errors": 0.05, "cuts": 0.03, "seed": 3}  # one that draws both kinds of cuts
    measures = {client: Measure(bench.setting(client), server, once=True) for client in ("core", "langchain")}
    return Group(measures, _faults_rows)


def _faults_rows(results: Results) -> list[Row]:
    rows = []
    for client in ("core", "langchain"):
        result = results[client][0]
        bad = f"{result['errors']} 500s and {result['cut']} cut of {result['requests']} requests"
        again, unexplained = result["billed_again"], result["billed_again_without_reason"]
        rows.append(
            Row(
                what=f"5 % 500s and 3 % cut, 20,000 texts, {client}",
                ours=failure(results, client) or f"finishes, rows right; {bad}; {again} billed again",
                ratio=f"{unexplained} billed again without reason",
                figure="finishes; billed again only where the answer was cut off",
                met="wall" in result and unexplained == 0,
            )
        )
    return rows


KILLED_TEXTS = 8000
KILLED_SLOTS = 4
MAX_BILLED_TWICE = 1024  # what is in flight: 4 requests of 256


def kill(bench: Bench) -> Group:
    """`kill -9` when half of 8,000 texts are billed, 4 requests in flight, then the same again."""
    measures = {
        client: Measure(
            bench.setting(client, n_texts=KILLED_TEXTS, slots=KILLED_SLOTS),
            fresh=True,
            kill_at=KILLED_TEXTS // 2,
        )
        for client in ("core", "langchain", "llamaindex")
    }
    return Group(measures, _kill_rows)


def _kill_rows(results: Results) -> list[Row]:
    rows = []
    for client, lists in (("core", "numpy"), ("langchain", "lists"), ("llamaindex", "lists")):
        again = [result["billed_again"] for result in results[client] if "wall" in result]
        rows.append(
            Row(
                what=f"kill -9 half way, 4 in flight, {lists}, {client}",
                ours=f"at most {max(again):,} billed twice" if again else failure(results, client),
                figure=f"<= {MAX_BILLED_TWICE:,} billed twice",
                met=bool(again) and max(again) <= MAX_BILLED_TWICE and len(again) == len(results[client]),
            )
        )
    return rows


GROUPS = {"distinct": distinct, "crowd": crowd, "bucket": bucket, "faults": faults, "kill": kill}
