"""From a loaded version to one that answers, with what all models share: the response cache and the rate limiter.

Lives on the event loop. Loading belongs to `load_any`, coming and going to `catalog`.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from farthing.batching.crossing import Crossing
from farthing.batching.rate_limiter import RateLimiter
from farthing.batching.turns import Demand
from farthing.config.model import ModelConfig
from farthing.config.server import RateLimit, SchedulingSettings
from farthing.runtime.cached import CachedEnsemble, CachedVersion
from farthing.runtime.ensemble import Ensemble, LoadedEnsemble
from farthing.runtime.ensemble_streams import EnsembleStreams
from farthing.runtime.in_order import InOrder
from farthing.runtime.language_model import LanguageModel, LoadedLanguageModel
from farthing.runtime.load import LoadedVersion
from farthing.runtime.passage import Resolve
from farthing.runtime.response_cache import ResponseCache
from farthing.runtime.served import Served, ServedVersion
from farthing.runtime.served_sequences import ServedSequences, ServedSequenceStreams
from farthing.runtime.served_streams import ServedStreams
from farthing.telemetry.statistics import ModelStatistics

Loaded = LoadedVersion | LoadedLanguageModel | LoadedEnsemble

log = logging.getLogger(__name__)


class Serving:
    """Makes versions answer."""

    def __init__(
        self, settings: SchedulingSettings, *, queue_requests_max: int, resolve: Callable[[str], Resolve]
    ) -> None:
        """`resolve` says how the ensembles of a namespace find the models they ask."""
        self.cache = ResponseCache(settings.response_cache_bytes)
        self._is_cache_open = settings.response_cache_bytes > 0
        self._queue_requests_max = queue_requests_max
        self._resolve = resolve
        self._loads = 0
        self.limiter = RateLimiter(settings.resources) if settings.rate_limit is RateLimit.EXECUTION_COUNT else None
        self.crossing = Crossing()

    def check(self, config: ModelConfig) -> None:
        """Raises `LoadFailed` if a model asks for more than there can be; before it is loaded."""
        if self.limiter is not None:
            self.limiter.check(config.name, demands(config))

    def serve(self, loaded: Loaded, statistics: ModelStatistics) -> Served:
        """The version, ready for requests. To be called on the event loop it will live on."""
        loop = asyncio.get_running_loop()
        if isinstance(loaded, LoadedLanguageModel):
            return LanguageModel(loaded, loop=loop, statistics=statistics)
        cache = self._cache_for(loaded)
        if isinstance(loaded, LoadedEnsemble):
            told: dict[str, Any] = {
                "resolve": self._resolve(loaded.spec.namespace),
                "requests_max": self._queue_requests_max,
                "lane": self.crossing.join(computes=False),
            }
            if loaded.streams is not None:
                return EnsembleStreams(loaded, statistics=statistics, **told)
            if cache:
                return CachedEnsemble(loaded, statistics=statistics, scheduler=loop, **told, **cache)
            return Ensemble(loaded, statistics=statistics, **told)
        told = {
            "queue_requests_max": self._queue_requests_max,
            "scheduler": loop,
            "statistics": statistics,
        }
        if self.limiter is not None:
            told["turns"] = self.limiter.join(demands(loaded.config))
        if loaded.is_decoupled:
            kind = ServedStreams if loaded.sequences is None else ServedSequenceStreams
            return kind(loaded, **told)
        served: ServedVersion
        if loaded.sequences is None:
            told["lane"] = self.crossing.join(computes=loaded.executable.is_pure)
        if loaded.sequences is not None:
            served = ServedSequences(loaded, **told)
        elif cache:
            served = CachedVersion(loaded, **told, **cache)
        else:
            served = ServedVersion(loaded, **told)
        dynamic = loaded.config.dynamic_batching
        if dynamic is not None and dynamic.preserve_ordering:
            served.submit = InOrder(served.submit)  # type: ignore[method-assign]
            served.takes_riders = False
        return served

    def _cache_for(self, loaded: LoadedVersion | LoadedEnsemble) -> dict[str, Any]:
        """What a version needs that asks for the response cache; empty for one that does without."""
        config = loaded.config
        if not config.response_cache.enable:
            return {}
        if why := self._why_uncached(loaded):
            log.warning("model %s: response_cache.enable changes nothing: %s", loaded.spec.name, why)
            return {}
        self._loads += 1
        return {"cache": self.cache, "load": self._loads}

    def _why_uncached(self, loaded: LoadedVersion | LoadedEnsemble) -> str:
        if not self._is_cache_open:
            return "the server was started with --response-cache-bytes 0"
        if loaded.config.sequence_batching is not None:
            return "an answer within a sequence depends on the requests before it"
        if loaded.config.model_transaction_policy.decoupled:
            return "a decoupled model gives other than one answer to a request"
        return ""


def demands(config: ModelConfig) -> list[Demand]:
    """What each instance needs while it runs, as its group's `rate_limiter` says."""
    needed: list[Demand] = []
    for group in config.instance_group:
        limiter = group.rate_limiter
        demand = Demand()
        if limiter is not None:
            resources: dict[str, int] = {}
            for resource in limiter.resources:
                resources[resource.name] = resources.get(resource.name, 0) + resource.count
            demand = Demand(resources=resources, priority=limiter.priority or 1)
        needed += [demand] * (group.count or 1)
    return needed
