"""Which versions of a model are served."""

from collections.abc import Iterable

from farthing.config.model import VersionPolicy


def versions_to_serve(policy: VersionPolicy, numbers: Iterable[int]) -> tuple[int, ...]:
    """The numbers the policy picks out of those that exist, ascending; without a policy the highest."""
    found = sorted(set(numbers))
    if policy.all is not None:
        return tuple(found)
    if policy.specific is not None:
        return tuple(number for number in found if number in policy.specific.versions)
    count = policy.latest.num_versions if policy.latest is not None else 1
    return tuple(found[-max(count, 1) :])
