"""Which way a version on disk is loaded: as an ensemble, as a language model, or by an engine.

The rooms of language models are imported when the first one is met: a server without any starts without them.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from farthing.config.server import LanguageSettings
from farthing.repository import FoundModel, FoundVersion
from farthing.repository.checksums import check_agents
from farthing.runtime.ensemble import LoadedEnsemble, load_ensemble
from farthing.runtime.language_model import BACKEND, PLATFORM
from farthing.runtime.load import LoadedVersion, load_version
from farthing.runtime.memory import Promises
from farthing.runtime.subrequests import RuntimeSubrequests

if TYPE_CHECKING:
    from farthing.runtime.language_model import LoadedLanguageModel


def load_any(
    settings: LanguageSettings,
    queue_max: int,
    memory: Promises,
    subrequests: RuntimeSubrequests,
    found: FoundModel,
    version: FoundVersion,
) -> "LoadedVersion | LoadedLanguageModel | LoadedEnsemble":
    """Loads one version. Raises `LoadFailed` naming the model or file and the reason."""
    check_agents(found)
    if found.config.ensemble_scheduling is not None:
        return load_ensemble(found, version)
    said = found.config.backend or found.config.platform
    if not is_language_model(version.path, said):
        return load_version(found, version, subrequests.near(found.namespace))
    from farthing.runtime.load_language_model import load_language_model

    return load_language_model(found, version, settings, queue_max=queue_max, memory=memory)


def is_language_model(path: Path, said: str) -> bool:
    """Whether a version is one: a `.gguf` file or a folder in Hugging Face's layout, or said to be by its backend."""
    if said:
        return said in (BACKEND, PLATFORM)
    return path.suffix == ".gguf" or path.is_dir()
