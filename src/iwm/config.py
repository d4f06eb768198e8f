"""The whole configuration: profiles.yaml -> params.yaml -> typed settings.

``profiles.yaml`` holds the defaults and what each profile changes. One command,
``iwm profile use NAME``, writes the resolved values to ``params.yaml``, which is
what DVC watches, so a changed value re-runs exactly the stages that read it.
``params.yaml`` may also be edited by hand.

Environment overrides (``IWM_BATCH_SIZE``, ``IWM_EPOCHS``, ``IWM_LR``) are applied by
``iwm profile use`` and by a stage that is run directly. Under ``dvc repro`` an
override that params.yaml does not hold is an error: DVC would record a value that
was not used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from iwm.data.config import ShardConfig, TrajectoryPlan, ValidateConfig
from iwm.errors import ConfigError
from iwm.evaluation.config import EvaluateConfig, Rule
from iwm.evaluation.control_config import ControlConfig
from iwm.files import write_text
from iwm.gameplay.config import BranchConfig, IngestConfig, RecordConfig, RemovalConfig
from iwm.settings import parse, settings
from iwm.training.config import TrainConfig

ProfileName = Literal[
    "smoke",
    "sprites",
    "cpu",
    "gpu",
    "dual-gpu",
    "cluster",
    "strong-doom",
    "strong-freeway",
    "strong-minigrid",
]

PARAMS_FILE = Path("params.yaml")
PROFILES_FILE = Path("profiles.yaml")

_HEADER = """\
# The parameters in force, written by `iwm profile use {profile}` from profiles.yaml.
# Edit values here and run `dvc repro`: only the stages that read them run again.
"""


@settings
class RegisterConfig:
    """Where models that pass their gates go."""

    experiment: str = "iwm"
    model: str = "iwm"
    """Registered model name; the phase is appended for all phases but core."""
    compare: str = "mrr.model.mean"
    """The figure in which a challenger must be no worse than the champion."""
    compare_for: dict[str, str] = field(default_factory=dict)
    """The same for single phases, e.g. ``{invariant: abstraction.model.mean}``."""
    tolerance: Annotated[float, Field(ge=0)] = 0.0


@settings
class PackageConfig:
    """The Bento."""

    name: str = "iwm"
    phase: str = "core"
    """Whose champion answers."""
    also: tuple[str, ...] = ("invariant", "equivariant", "core", "vqvae-dynamics", "embodied")
    """Whose champions are packed beside it, where they have one: the streams of /encode_dual,
    what ``IWM_MODEL_VARIANT`` may choose, and what /reconstruct and /dream answer with."""
    max_mb: Annotated[int, Field(gt=0)] = 4096
    """Most megabytes that the models may hold together."""
    port: Annotated[int, Field(gt=0, lt=65536)] = 8001
    smoke_requests: Annotated[int, Field(gt=0)] = 8


@settings
class Params:
    """Everything in params.yaml."""

    profile: ProfileName
    record: RecordConfig
    ingest: IngestConfig
    validate: ValidateConfig
    shard: ShardConfig
    branch: BranchConfig
    train: dict[str, TrainConfig]
    evaluate: dict[str, EvaluateConfig]
    gate: dict[str, tuple[Rule, ...]]
    control: dict[str, ControlConfig] = field(default_factory=dict)
    trajectories: dict[str, TrajectoryPlan] = field(default_factory=dict)
    removals: RemovalConfig = RemovalConfig()
    register: RegisterConfig = RegisterConfig()
    package: PackageConfig = PackageConfig()


# Environment name -> (dotted path below every train.<phase>, parser).
_TRAIN_OVERRIDES: dict[str, tuple[str, type[int] | type[float]]] = {
    "IWM_BATCH_SIZE": ("batch_size", int),
    "IWM_EPOCHS": ("epochs", int),
    "IWM_LR": ("optim.lr", float),
}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, not YAML, has a key twice, or is not a mapping.
    """
    try:
        # Unlike PyYAML it refuses a key that is there twice, where the last would silently win.
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: not found; run this in the repository root, or `iwm profile use cpu` first"
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, found {type(values).__name__}")
    return values


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``: mappings merge, everything else replaces."""
    merged = deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = deepcopy(value)
    return merged


def set_dotted(values: dict[str, Any], path: str, value: Any) -> None:
    """Set ``a.b.c`` in nested mappings.

    Raises:
        ConfigError: a part before the last is not a mapping.
    """
    *parents, last = path.split(".")
    node = values
    for part in parents:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{path}: {part} is a value, not a section")
        node = child
    node[last] = value


def environment_overrides(
    values: dict[str, Any], environ: Mapping[str, str]
) -> dict[str, tuple[str, Any]]:
    """What the environment asks for: ``{dotted path: (variable, value)}``.

    Raises:
        ConfigError: a variable does not hold a number.
    """
    found: dict[str, tuple[str, Any]] = {}
    for variable, (path, kind) in _TRAIN_OVERRIDES.items():
        text = environ.get(variable)
        if text is None:
            continue
        try:
            value = kind(text)
        except ValueError:
            raise ConfigError(f"{variable}: expected a number, given {text!r}") from None
        for phase in values.get("train", {}):
            found[f"train.{phase}.{path}"] = (variable, value)
    return found


def get_dotted(values: Mapping[str, Any], path: str) -> Any:
    """The value at ``a.b.c``, or ``None`` where there is none."""
    node: Any = values
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def resolve_profile(
    name: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    profiles: Path = PROFILES_FILE,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Plain values of a profile, overrides applied and everything checked.

    Args:
        name: a profile of ``profiles.yaml``.
        overrides: ``{dotted path: value}``, stronger than the environment.
        profiles: the file to read.
        environ: where the ``IWM_*`` variables are looked up.

    Raises:
        ConfigError: no such profile, or a value that does not fit.
    """
    document = read_yaml(profiles)
    known = document.get("profiles", {})
    if name not in known:
        raise ConfigError(f"profile {name!r} is not in {profiles}; it has {', '.join(known)}")
    values = {"profile": name, **merge(document.get("defaults", {}), _extended(known, name))}
    for path, (_, value) in environment_overrides(values, environ).items():
        set_dotted(values, path, value)
    for path, value in (overrides or {}).items():
        set_dotted(values, path, value)
    parse(Params, values, str(profiles))
    return values


def _extended(known: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A profile's own values, laid over those of the profile that its ``extends`` names.

    Raises:
        ConfigError: it extends one that is not there, or one that extends another itself.
    """
    own = dict(known[name] or {})
    base = own.pop("extends", None)
    if base is None:
        return own
    if base not in known or "extends" in (known[base] or {}):
        raise ConfigError(
            f"profile {name!r} extends {base!r}, which is no profile that extends no other"
        )
    return merge(known[base] or {}, own)


def write_params(values: Mapping[str, Any], path: Path = PARAMS_FILE) -> None:
    """Write resolved values as ``params.yaml``, atomically."""
    body = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)
    write_text(path, _HEADER.format(profile=values["profile"]) + body)


def load_params(path: Path = PARAMS_FILE, environ: Mapping[str, str] = os.environ) -> Params:
    """The typed configuration of this run.

    Raises:
        ConfigError: the file is missing or wrong, or, under DVC, an environment
            override asks for a value that the file does not hold.
    """
    values = read_yaml(path)
    under_dvc = "DVC_ROOT" in environ
    for key, (variable, value) in environment_overrides(values, environ).items():
        if under_dvc and get_dotted(values, key) != value:
            raise ConfigError(
                f"{variable}={value} is not what {path} holds ({get_dotted(values, key)}), and DVC "
                f"cannot see it: run `iwm profile use {values.get('profile', 'cpu')}` to write it"
            )
        set_dotted(values, key, value)
    return parse(Params, values, str(path))
