"""Models on disk: layouts, versions, configurations, pipelines, what changed since the last look, samples.

`Repository` is what the rest of the house asks; running what it found belongs to `engines`.
"""

from farthing.repository.labels import read_labels
from farthing.repository.names import check_model_name
from farthing.repository.namespaces import ambiguous, meant, model_key
from farthing.repository.repository import Repository
from farthing.repository.snapshot import Changes, FoundModel, FoundVersion, Problem, Snapshot, changes, settled
from farthing.repository.versions import versions_to_serve

__all__ = [
    "Changes",
    "FoundModel",
    "FoundVersion",
    "Problem",
    "Repository",
    "Snapshot",
    "ambiguous",
    "changes",
    "check_model_name",
    "meant",
    "model_key",
    "read_labels",
    "settled",
    "versions_to_serve",
]
