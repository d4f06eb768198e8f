"""The generative models' stages and commands, once through, with tiny untrained models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import ACTIONS, write_store
from PIL import Image

from iwm.config import resolve_profile, write_params
from iwm.errors import ConfigError, DataError, GateFailed, ModelError
from iwm.files import read_json, write_json
from iwm.models.registry import create_model
from pipelines import dream, milestones, reconstruct
from pipelines.evaluate import evaluate
from pipelines.gate import gate

ROOT = Path(__file__).resolve().parents[2]
LEVELS = [8, 5, 5, 5]
TOKENIZER = {
    "image_size": [64, 64], "stem": 4, "channels": [16], "blocks": 1, "decoder_blocks": 1,
    "heads": 2, "groups": 8, "quantiser": {"levels": LEVELS},
}  # fmt: skip
DREAM = {
    "next_windows": 12, "sequences": 6, "steps": 10, "action_windows": 8, "action_steps": 4,
    "reader_pairs": 64, "reader_steps": 3, "frechet_encoder": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with shards and models, evaluated by nobody yet."""
    folder = tmp_path_factory.mktemp("checkout")
    write_store(folder / "artifacts/shards")
    torch.manual_seed(0)
    models = {
        "vqvae": create_model("vqvae", **TOKENIZER),
        "vqvae-dynamics": create_model(
            "vqvae-dynamics", image_size=[64, 64], vocabulary=list(ACTIONS),
            tokenizer=TOKENIZER, context=4, group=4, width=32, depth=2, heads=2, detail=16,
        ),
    }  # fmt: skip
    for name, model in models.items():
        model.eval().save_pretrained(folder / "artifacts/models" / name)
        write_json(folder / f"artifacts/models/{name}/training.json", {"steps": 1})
        row = '{"step": 1, "loss": 1.0}\n'
        (folder / f"artifacts/models/{name}/history.jsonl").write_text(row)
    values = resolve_profile("smoke", profiles=ROOT / "profiles.yaml", environ={})
    values["evaluate"]["vqvae"] |= {"images": 24, "bootstrap": 100}
    values["evaluate"]["vqvae-dynamics"] |= {"bootstrap": 100, "dream": DREAM}
    write_params(values, folder / "params.yaml")
    (folder / "profiles.yaml").write_text((ROOT / "profiles.yaml").read_text())
    return folder


@pytest.fixture(autouse=True)
def _inside(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)


def test_untrained_models_are_measured_judged_and_prove_nothing(checkout: Path) -> None:
    for phase in ("vqvae", "vqvae-dynamics"):
        evaluate(phase)
        with pytest.raises(GateFailed):
            gate(phase)
        found = read_json(checkout / f"reports/metrics/{phase}.json")
        assert found["weights_sha256"]
    assert list((checkout / "artifacts/evaluation/vqvae-dynamics").glob("*.png"))
    milestones.command()
    report = read_json(checkout / "reports/milestones.json")
    # One that copies may by chance be the nearer on few windows, and proves nothing else.
    held = {name for name, value in report["capabilities"].items() if value}
    assert held <= {"next_frame_prediction"}
    assert report["percentage"] == 100 * len(held) / 8
    assert [entry["passed"] for entry in report["milestones"]] == [False] * 4
    page = (checkout / "reports/milestones.html").read_text()
    assert page.count("data:image/png;base64,") >= 6
    assert "has no rule for" in page
    # Figures of other weights than those that are there prove nothing either.
    gates = checkout / "reports/gates/vqvae.json"
    write_json(gates, {**read_json(gates), "passed": True, "weights_sha256": "0" * 64})
    milestones.command()
    report = read_json(checkout / "reports/milestones.json")
    assert report["evidence"]["static_reconstruction"] == "no gate report of vqvae"


def test_reconstruct_takes_any_size_and_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 4), np.uint8)
    images = []
    for mode, name in (("RGB", "a.png"), ("L", "b.jpg"), ("RGBA", "c.png"), ("P", "d/a.png")):
        images.append(tmp_path / name)
        images[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(noise).convert(mode).save(images[-1])
    out = tmp_path / "out"
    reconstruct.command(images, out=out, device="cpu")
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{name}.{kind}.png" for name in ("a", "b", "c", "a-2") for kind in ("tokens", "error")
    )
    with Image.open(out / "a.tokens.png") as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")
    said = capsys.readouterr().out
    assert said.count("PSNR") == 4
    (tmp_path / "none.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none\.png: not an image"):
        reconstruct.command([tmp_path / "none.png"], out=out, device="cpu")
    with pytest.raises(ModelError, match="no trained model"):
        reconstruct.command(images, model=tmp_path / "absent", out=out)


def test_dream_writes_an_episode_beside_the_true_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dream.command(tmp_path / "a.gif", frames=6, device="cpu")
    assert "above" not in capsys.readouterr().err
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 6  # type: ignore[attr-defined]
    dream.command(tmp_path / "b.mp4", frames=6, shown=1, hold="left", seed=3, device="cpu")
    assert (tmp_path / "b.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ConfigError, "a dream has 1 to 1000 frames", {"frames": 1001}),
        (DataError, "has 104 frames in a row", {"frames": 100}),
        (ConfigError, "looks back on 1 to 4 frames", {"shown": 5}),
        (ConfigError, "--hold jump: the model knows stay, left", {"hold": "jump"}),
        (DataError, "has no recording 'three'", {"recording": "three"}),
        (ModelError, "no trained model", {"model": Path("absent")}),
        (ModelError, "only vqvae-dynamics dreams", {"model": Path("artifacts/models/vqvae")}),
        (ConfigError, r"\.gif or \.mp4", {"out": Path("dream.png")}),
    ],
)
def test_what_cannot_be_dreamed_is_said_in_one_line(
    error: type[Exception], message: str, options: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        dream.command(**{"out": tmp_path / "a.gif", "device": "cpu", **options})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_another_codebook_is_refused(checkout: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "vqvae-dynamics"
    shutil.copytree(checkout / "artifacts/models/vqvae-dynamics", folder)
    other = create_model("vqvae", **{**TOKENIZER, "quantiser": {"levels": [8, 5, 5]}})
    other.save_pretrained(folder / "tokenizer")
    with pytest.raises(ModelError, match="codebook of 200, the dynamics were made for 1000"):
        dream.command(tmp_path / "a.gif", model=folder, device="cpu")
