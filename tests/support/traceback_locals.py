"""Find a secret in the local variables of the frames of a traceback, which rich, Sentry and pytest show."""

from collections.abc import Iterator, Mapping

SECRET = "Zx81Qp77LmNeverShow"
OURS = ("embedkit_core", "langchain_embedkit", "llamaindex_embedkit")


def errors(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its causes and contexts, and the errors in `failed`."""
    yield error
    for other in (error.__cause__, error.__context__, *getattr(error, "failed", {}).values()):
        if other is not None:
            yield from errors(other)


def shown(value: object, depth: int = 5) -> Iterator[str]:
    """Yield what a reporter shows of a value: the entries of containers, and the repr."""
    try:
        yield repr(value)
    except Exception as error:  # an object whose constructor has failed
        yield repr(error)
    if depth and isinstance(value, Mapping):
        for pair in value.items():
            yield from shown(pair, depth - 1)
    elif depth and isinstance(value, (list, tuple, set)):
        for entry in value:
            yield from shown(entry, depth - 1)


def leaks(error: BaseException) -> list[str]:
    """Return the local variables of our frames that show the secret."""
    found = []
    for one in errors(error):
        traceback = one.__traceback__
        while traceback is not None:
            frame = traceback.tb_frame
            if frame.f_globals.get("__name__", "").startswith(OURS):
                names = [n for n, v in frame.f_locals.items() if any(SECRET in text for text in shown(v))]
                found += [f"{frame.f_code.co_qualname}: {name}" for name in names]
            traceback = traceback.tb_next
    return found
