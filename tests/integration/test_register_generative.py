"""Models of pictures in the registry: tokenizers and token dynamics (no calibration, a tokenizer
beside the weights), the critic of permanence.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from iwm.errors import ModelError
from iwm.files import write_json
from iwm.models.registry import create_model, load_model
from pipelines._registry import sha256
from pipelines.register import register

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = {
    "image_size": [32, 32], "stem": 4, "channels": [16], "blocks": 1, "decoder_blocks": 1,
    "heads": 2, "groups": 8,
}  # fmt: skip
FIGURES = {
    "vqvae": "reconstruction.psnr",
    "vqvae-dynamics": "sequence.context_4.k10.gain_copy_last",
    "permanence": "removal.model",
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in [name for name in os.environ if name.startswith(("IWM_", "MLFLOW_TRACKING"))]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    shutil.copy2(ROOT / "params.yaml", tmp_path)
    return tmp_path


def _passed(root: Path, phase: str) -> None:
    """What the stages up to `gate@PHASE` leave in a checkout."""
    torch.manual_seed(0)
    if phase == "vqvae":
        model = create_model("vqvae", **TOKENIZER)
    elif phase == "permanence":
        model = create_model("permanence", image_size=[32, 32], width=16, match=8, head=16)
    else:
        model = create_model(
            "vqvae-dynamics", image_size=[32, 32], vocabulary=["left", "right"],
            tokenizer=TOKENIZER, group=4, width=16, depth=2, heads=2, detail=16,
        )  # fmt: skip
    folder = root / "artifacts/models" / phase
    model.eval().save_pretrained(folder)
    (root / "artifacts/evaluation" / phase).mkdir(parents=True)
    digest = sha256(folder / "model.safetensors")
    value = {"mean": 31.0, "low": 30.5, "high": 31.5, "n": 9}
    figures: dict[str, object] = value
    for part in reversed(FIGURES[phase].split(".")):
        figures = {part: figures}
    write_json(
        root / f"reports/metrics/{phase}.json",
        {"profile": "cpu", "weights_sha256": digest, **figures},
    )
    rule = {
        "figure": FIGURES[phase], "value": 31.0, "low": 30.5, "high": 31.5, "comparison": ">",
        "threshold": 30.0, "verdict": "pass", "missed_by": 0.0,
    }  # fmt: skip
    gate = {"gate": phase, "passed": True, "weights_sha256": digest, "rules": [rule]}
    write_json(root / f"reports/gates/{phase}.json", gate)


def test_generative_models_are_registered_whole(checkout: Path) -> None:
    import mlflow

    for phase in ("vqvae", "vqvae-dynamics"):
        _passed(checkout, phase)
        result = register(phase)
        assert (result["model"], result["alias"]) == (f"iwm-{phase}", "champion")
        where = f"models:/iwm-{phase}@champion"
        folder = Path(mlflow.artifacts.download_artifacts(where)) / "artifacts/model"
        assert not (folder / "calibration.json").exists()
        fetched, own = (load_model(at) for at in (folder, checkout / "artifacts/models" / phase))
        for one, other in zip(
            fetched.state_dict().values(), own.state_dict().values(), strict=True
        ):
            assert torch.equal(one, other)
        images = np.random.default_rng(0).integers(0, 256, (2, 48, 40, 3), np.uint8)
        rebuilt = mlflow.pyfunc.load_model(where).predict(images)
        assert (rebuilt.shape, rebuilt.dtype) == ((2, 32, 32, 3), np.uint8)


def test_a_critic_is_registered_with_its_scale(checkout: Path) -> None:
    import mlflow

    _passed(checkout, "permanence")
    with pytest.raises(ModelError, match=r"calibration\.json: not found"):
        register("permanence")
    scale = checkout / "artifacts/evaluation/permanence/calibration.json"
    write_json(scale, {"scale": 2.5, "threshold": 2.0})
    assert register("permanence")["alias"] == "champion"
    where = "models:/iwm-permanence@champion"
    folder = Path(mlflow.artifacts.download_artifacts(where)) / "artifacts/model"
    assert (folder / "calibration.json").read_bytes() == scale.read_bytes()
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 48, 40, 3), np.uint8)
    told = mlflow.pyfunc.load_model(where).predict({"before": images[:, :2], "after": images[:, 2]})
    assert (told.shape, told.dtype) == ((2, 8, 8), np.float32)


def test_models_that_need_a_calibration_still_do(checkout: Path) -> None:
    from tinymodel import write_phase

    write_phase(checkout)
    (checkout / "artifacts/evaluation/core/calibration.json").unlink()
    with pytest.raises(ModelError, match=r"calibration\.json: not found"):
        register("core")
