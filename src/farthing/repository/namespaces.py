"""Which model does a name mean, where several repositories have one of that name?

A namespace is the absolute path of a repository. Without `--model-namespacing` there is but one, with an empty name,
and a model's name says it all. Pure; who has which models is for callers to know.
"""

from collections.abc import Collection, Iterable

from farthing.types.errors import InvalidInput


def model_key(name: str, namespace: str) -> str:
    """What tells a model from all others: its name, behind its namespace where there are any."""
    return f"{namespace}/{name}" if namespace else name


def meant(namespaces: Iterable[str], *, within: str = "", near: str | None = None) -> list[str]:
    """Of the namespaces that have a name, those it may stand for: one, where that is clear.

    `within` is the one that was asked for. Else that of the model which asks, `near`, comes before all others.
    """
    found = list(namespaces)
    if within and found != [""]:  # where there are no namespaces, none can be asked for
        return [within] if within in found else []
    return [near] if near in found else found


def ambiguous(name: str, namespaces: Collection[str]) -> InvalidInput:
    """What to tell whoever asks for a name that stands for several models."""
    places = ", ".join(sorted(namespace or "what a client brought" for namespace in namespaces))
    return InvalidInput(
        f"Request for ambiguous model: '{name}' is in {len(namespaces)} repositories: {places}",
        hint="ask an ensemble or a model of one of these, which asks its neighbour; or rename one",
    )
