"""The part of `triton_python_backend_utils` about a model's configuration: completing it, and looking into it."""

import json
from collections.abc import Mapping
from typing import Any


class ModelConfig:
    """The configuration that `auto_complete_config` may complete. What is already set must agree."""

    def __init__(self, model_config: str) -> None:
        self._config: dict[str, Any] = json.loads(model_config)
        self._config.setdefault("max_batch_size", 0)

    def as_dict(self) -> dict[str, Any]:
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        configured = self._config["max_batch_size"]
        if configured > max_batch_size:
            raise ValueError(
                f"model `{self._name}`: max_batch_size is configured as {configured}, the model allows {max_batch_size}"
            )
        self._config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        for other in ("sequence_batching", "ensemble_scheduling"):
            if self._config.get(other) is not None:
                raise ValueError(f"model `{self._name}`: {other} is configured, dynamic_batching cannot be added")
        self._config.setdefault("dynamic_batching", {})

    def add_input(self, properties: Mapping[str, Any]) -> None:
        self._add("input", properties, ("name", "data_type", "dims", "optional"))

    def add_output(self, properties: Mapping[str, Any]) -> None:
        self._add("output", properties, ("name", "data_type", "dims"))

    def set_model_transaction_policy(self, policy: Mapping[str, Any]) -> None:
        if unknown := [key for key in policy if key != "decoupled"]:
            raise ValueError(f"model `{self._name}`: no transaction policy is `{unknown[0]}`; allowed: decoupled")
        is_decoupled = bool(policy.get("decoupled"))
        configured = self._config.get("model_transaction_policy", {}).get("decoupled")
        if configured and not is_decoupled:
            raise ValueError(f"model `{self._name}`: decoupled is configured as true, the model says false")
        self._config.setdefault("model_transaction_policy", {})["decoupled"] = is_decoupled

    @property
    def _name(self) -> str:
        return str(self._config.get("name", ""))

    def _add(self, kind: str, properties: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
        name = properties.get("name", "")
        where = f"model `{self._name}`, {kind} `{name}`"
        if unknown := [key for key in properties if key not in allowed]:
            raise ValueError(f"{where}: unknown property `{unknown[0]}`; allowed: {', '.join(allowed)}")
        if missing := [key for key in ("name", "data_type", "dims") if key not in properties]:
            raise ValueError(f"{where}: `{missing[0]}` is missing")
        tensors: list[dict[str, Any]] = self._config.setdefault(kind, [])
        configured = next((tensor for tensor in tensors if tensor["name"] == name), None)
        if configured is None:
            tensors.append(dict(properties))
            return
        for key, value in properties.items():
            known = configured.get(key)
            if known is None or known in ("TYPE_INVALID", []):
                continue
            if (list(known) != list(value)) if key == "dims" else (known != value):
                raise ValueError(f"{where}: {key} is configured as {known}, the model says {value}")
        configured.update(properties)


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The configuration of the input of that name, or None."""
    return next((entry for entry in model_config.get("input", ()) if entry["name"] == name), None)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The configuration of the output of that name, or None."""
    return next((entry for entry in model_config.get("output", ()) if entry["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether the configuration asks for several answers to a request (such a model is refused at loading)."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))
