"""Trajectories into a few characters and back: transform coding that sender and receiver share.

A trajectory [H, S] is normalised, seen in its F main directions and along its K main courses
over time (a Karhunen-Loeve transform, fitted to trajectories, or cosines where there are none),
and the K numbers are quantised, each as finely as it deserves (Huang and Schultheiss 1963).
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iwm.agents import quantisation
from iwm.errors import DataError, ModelError

Floats = npt.NDArray[np.float32]

FILE = "intention.safetensors"
"""In the folder of the world model whose trajectories are coded."""
MAX_CODE = 64
"""Characters of a code."""


class TrajectoryCodec:
    """Codes trajectories of up to ``horizon`` states of ``state_dim`` numbers.

    Args:
        center: [S], subtracted from states.
        scale: [S], then divided by; distances are in its units.
        directions: [S, F], orthonormal columns: what of a normalised state is coded.
        mean: [H, F], of the coded part.
        courses: [K, H * F], orthonormal rows.
        sigma: [K], standard deviations along them.

    Attributes:
        view, origin: [S, F] and [F]: a state in the coded directions is
            ``state @ view - origin``.
    """

    def __init__(
        self,
        center: Floats,
        scale: Floats,
        directions: Floats,
        mean: Floats,
        courses: Floats,
        sigma: Floats,
    ) -> None:
        self.center, self.scale, self.directions = center, scale, directions
        self.mean, self.courses, self.sigma = mean, courses, sigma
        self.horizon, self.features = mean.shape
        self.state_dim = len(center)
        shapes = {
            "scale": (scale.shape, (self.state_dim,)),
            "directions": (directions.shape, (self.state_dim, self.features)),
            "courses": (courses.shape, (len(sigma), self.horizon * self.features)),
        }
        for name, (given, expected) in shapes.items():
            if given != expected:
                raise ModelError(f"{FILE}: {name}: expected {expected}, given {given}")
        if not all(np.isfinite(array).all() for array in self._arrays().values()):
            raise ModelError(f"{FILE}: expected finite numbers")
        if (scale <= 0).any() or (sigma < 0).any():
            raise ModelError(f"{FILE}: scale and sigma: expected positive numbers")
        # (state - center) / scale, seen in the directions, is one product.
        self.view = directions / scale[:, None]
        self.origin = center @ self.view
        self._layout = lru_cache(maxsize=MAX_CODE + 1)(partial(quantisation.Layout.of, sigma))

    @classmethod
    def fit(
        cls, trajectories: npt.NDArray[Any], *, features: int = 16, courses: int = 64
    ) -> TrajectoryCodec:
        """The transform that keeps most of these trajectories.

        Args:
            trajectories: [N, H, S].
            features: F at most.
            courses: K at most; a code of 30 characters pays for some 50.

        Raises:
            DataError: fewer than two trajectories, or numbers that are not finite.
        """
        values = np.asarray(trajectories, np.float32)
        if values.ndim != 3 or len(values) < 2 or not np.isfinite(values).all():
            raise DataError(f"trajectories: expected finite [N > 1, H, S], given {values.shape}")
        count, horizon, size = values.shape
        center = values.mean((0, 1))
        spread = values.std((0, 1))
        # A number that never changes has no scale of its own.
        moves = spread > 1e-6 * max(float(spread.max()), 1e-6)
        scale = np.where(moves, spread, np.float32(1.0))
        flat = ((values - center) / scale).reshape(-1, size)
        directions = np.linalg.eigh(flat.T @ flat)[1][:, ::-1][:, :features]
        seen = (flat @ directions).reshape(count, -1)
        mean = seen.mean(0)
        _, weights, rows = np.linalg.svd(seen - mean, full_matrices=False)
        kept = min(courses, len(rows))
        return cls(
            center,
            scale,
            np.ascontiguousarray(directions, np.float32),
            np.asarray(mean, np.float32).reshape(horizon, -1),
            np.ascontiguousarray(rows[:kept], np.float32),
            (weights[:kept] / np.sqrt(count)).astype(np.float32),
        )

    @classmethod
    def cosine(
        cls,
        horizon: int,
        low: npt.ArrayLike,
        high: npt.ArrayLike,
        *,
        courses: int = 64,
    ) -> TrajectoryCodec:
        """A transform that needs no data: cosines over time for each number of a state.

        Args:
            horizon: H.
            low: [S], the least value of each number.
            high: [S], its greatest.
            courses: K at most.
        """
        least, most = np.asarray(low, np.float32), np.asarray(high, np.float32)
        if least.ndim != 1 or least.shape != most.shape or not (least < most).all():
            raise DataError("low, high: expected two lists as long as a state, low below high")
        size = len(least)
        time = np.arange(horizon)
        waves = np.cos(np.pi * (time[None] + 0.5) * time[:, None] / horizon)
        waves *= np.where(time == 0, 1.0, np.sqrt(2.0))[:, None] / np.sqrt(horizon)
        # Row (k, d): wave k in number d alone, in the layout [H, S] of a flat trajectory.
        rows = np.einsum("kt,de->kdte", waves, np.eye(size)).reshape(horizon * size, -1)
        # Uniform positions have the deviation 1 in this scale; walks fall off as 1 / k.
        sigma = np.repeat(np.sqrt(horizon) / (1.0 + time), size)
        return cls(
            np.asarray((least + most) / 2, np.float32),
            np.asarray((most - least) / np.sqrt(12), np.float32),
            np.eye(size, dtype=np.float32),
            np.zeros((horizon, size), np.float32),
            rows[:courses].astype(np.float32),
            sigma[:courses].astype(np.float32),
        )

    def project(self, states: npt.NDArray[Any]) -> Floats:
        """Normalised states [..., S] in the coded directions: [..., F]."""
        return np.asarray(states @ self.view - self.origin, np.float32)

    def lift(self, features: npt.NDArray[Any]) -> Floats:
        """States [..., S] of features [..., F]."""
        states = (features @ self.directions.T) * self.scale + self.center
        return np.asarray(states, np.float32)

    def encode(self, trajectory: npt.NDArray[Any], length: int) -> str:
        """A trajectory [up to H, S] as ``length`` characters; a shorter one waits at its end.

        Raises:
            DataError: another shape, or numbers that are not finite.
        """
        states = np.asarray(trajectory, np.float32)
        good = states.ndim == 2 and 0 < len(states) <= self.horizon
        if not good or states.shape[1] != self.state_dim or not np.isfinite(states).all():
            raise DataError(
                f"trajectory: expected finite [1 to {self.horizon}, {self.state_dim}], "
                f"given {states.shape}"
            )
        if len(states) < self.horizon:
            rest = np.repeat(states[-1:], self.horizon - len(states), axis=0)
            states = np.concatenate([states, rest])
        # Not by BLAS: its threads wait for each other longer than this takes.
        numbers = (self.courses * (self.project(states) - self.mean).reshape(-1)).sum(-1)
        return self._layout(length).write(numbers, length)

    def decode(self, codes: list[str]) -> Floats:
        """Codes as features [N, H, F].

        Raises:
            DataError: something that is no code.
        """
        for code in codes:
            if not 0 < len(code) <= MAX_CODE:
                raise DataError(f"plan: expected 1 to {MAX_CODE} characters, given {len(code)}")
        numbers = np.array(
            [self._layout(len(code)).read(code) for code in codes], np.float32
        ).reshape(len(codes), len(self.sigma))
        coded = np.einsum("nk,kf->nf", numbers, self.courses)
        return np.asarray(coded.reshape(-1, self.horizon, self.features) + self.mean, np.float32)

    def _arrays(self) -> dict[str, Floats]:
        names = ("center", "scale", "directions", "mean", "courses", "sigma")
        return {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in names}

    def save(self, folder: Path) -> None:
        """Write :data:`FILE` into a model's folder."""
        from safetensors.numpy import save_file

        from iwm.files import atomic_path

        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / FILE) as temporary:
            save_file(self._arrays(), temporary, metadata={"format": "np"})
            temporary.chmod(0o644)  # safetensors makes it private; a released model is not

    @classmethod
    def load(cls, folder: Path) -> TrajectoryCodec:
        """Read :data:`FILE`.

        Raises:
            ModelError: missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = folder / FILE
        try:
            arrays = load_file(path)
            return cls(**{name: np.asarray(array, np.float32) for name, array in arrays.items()})
        except FileNotFoundError:
            raise ModelError(f"{path}: not found") from None
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read: {error}") from None
