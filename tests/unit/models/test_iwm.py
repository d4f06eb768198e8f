from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from iwm.data.batch import Batch
from iwm.errors import ConfigError, ModelError
from iwm.models.iwm import IWM, model_config
from iwm.models.predictor import Predictor, normalise
from iwm.models.registry import create_model, load_model

SHAPE = {"width": 32, "depth": 1, "heads": 2}
TINY: dict[str, Any] = {
    "image_size": [32, 32],
    "encoder": {"patch": 8, **SHAPE},
    "predictor": {**SHAPE, "dropout": 0.0},
    "objective": {"inverse": 1.0, "variance": 1.0, "covariance": 0.1, "sigreg": 0.1},
    "ema_start": 0.5,
}


def tiny(**over: Any) -> IWM:
    torch.manual_seed(0)
    model = create_model("iwm", **{**TINY, **over})
    assert isinstance(model, IWM)
    return model


def frames(n: int = 8, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def batch(n: int = 8, size: int = 32, seed: int = 0) -> Batch:
    zeros = torch.zeros(n, dtype=torch.int64)
    return Batch(
        images=frames(n, size, seed)[:, None],
        action=zeros[:, None],
        reward=torch.zeros(n, 1),
        done=torch.zeros(n, 1, dtype=torch.bool),
        recording=zeros,
        episode=zeros,
        step=zeros,
        keys=[f"r/000000/{i:06d}" for i in range(n)],
    )


@pytest.mark.parametrize("conditioning", ["feature", "sequence", "adaln"])
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_every_conditioning_trains_everything_that_should_train(
    conditioning: str, stem: str
) -> None:
    model = tiny(
        predictor={**SHAPE, "conditioning": conditioning, "action_tokens": 2},
        encoder={"patch": 8, "stem": stem, "pool": "cls+mean", **SHAPE},
    )
    # The heads begin at zero, which stops gradients behind them for one step.
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model.before_step(step)
        loss, logs = model(batch())
        loss.backward()
        optimizer.step()
    assert all(torch.isfinite(value) for value in logs.values())
    still = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    }
    assert still <= {"online.vit.cls_token"}, still
    assert all(p.grad is None for p in model.encoder.parameters())


@pytest.mark.parametrize(
    ("objective", "ema_start", "terms"),
    [
        ({}, 0.996, set()),
        ({"sigreg": 0.1}, 0.0, {"sigreg"}),
        ({"variance": 10.0, "covariance": 1.0}, 0.9, {"variance", "covariance"}),
    ],
    ids=["ema", "sigreg", "variance-covariance"],
)
def test_every_mode_against_collapse_trains_and_logs_its_terms(
    objective: dict[str, float], ema_start: float, terms: set[str]
) -> None:
    off = dict.fromkeys(("inverse", "variance", "covariance", "sigreg"), 0.0)
    model = tiny(
        objective={**off, **objective},
        ema_start=ema_start,
        encoder={"patch": 8, "pool": "cls+mean", **SHAPE},
    )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model.before_step(step)
        loss, logs = model(batch())
        loss.backward()
        optimizer.step()
        model.after_step(step / 3)
    always = {"patch", "cls", "cls_only", "error_head"}
    figures = {"effective_rank", "mean_std", "min_std"}
    assert set(logs) == {f"loss_{name}" for name in always | terms} | figures
    assert all(torch.isfinite(value) for value in logs.values())
    assert 1 <= logs["effective_rank"] <= 8
    assert 0 < logs["min_std"] <= logs["mean_std"]
    assert [name for name, p in trained.items() if p.grad is None] == []


@pytest.mark.parametrize("pool", ["cls", "cls+mean"])
def test_sigreg_alone_can_be_lowered(pool: str) -> None:
    """Latents end in a LayerNorm, whose sphere alone would not let them: the projector does."""
    model = tiny(
        objective={"patch": 0, "cls": 0, "cls_only": 0, "sigreg": 1.0, "cls_only_share": 0.5},
        encoder={"patch": 8, "pool": pool, **SHAPE},
    )
    assert model.online is not None
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    found = []
    for _ in range(25):
        model.before_step(0, statistics=False)  # the same views and directions each time
        loss, logs = model(batch(16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(logs["loss_sigreg"]))
    assert found[-1] < 0.7 * found[0], found


def test_the_step_is_a_function_of_its_seed() -> None:
    model = tiny()

    def loss(seed: int) -> float:
        model.before_step(seed)
        torch.manual_seed(seed)
        return model(batch())[0].item()

    assert loss(3) == loss(3) != loss(4)


def test_ranks_share_the_global_draw() -> None:
    """Two ranks with half a batch each meet the views that one rank meets."""
    from iwm.data.augment import sample_views

    config = tiny().config.augment
    whole = sample_views(8, config, torch.Generator().manual_seed(9)).action()
    halves = [
        sample_views(8, config, torch.Generator().manual_seed(9)).rows(rows).action()
        for rows in (slice(0, 4), slice(4, 8))
    ]
    assert torch.equal(torch.cat(halves), whole)


def test_the_target_follows_the_online_encoder() -> None:
    model = tiny()
    assert model.online is not None
    own, online = next(model.encoder.parameters()), next(model.online.parameters())
    with torch.no_grad():
        online += 1.0
    before = own.clone()
    model.after_step(0.0)
    torch.testing.assert_close(own, before + 0.5)
    model.after_step(1.0)  # momentum 1: the target stands still
    torch.testing.assert_close(own, before + 0.5)


def test_cls_only_prediction_runs_one_token() -> None:
    model = tiny().eval()
    seen: list[int] = []
    model.predictor.blocks[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[1])
    )
    z_cls, z_patches = model.encode(frames())
    action = torch.zeros(8, 16)
    alone, full = model.predict(z_cls, action), model.predict(z_cls, action, z_patches)
    assert seen == [1, 1 + 2 * 16]
    assert alone.z_patches is None
    assert full.z_patches is not None
    assert full.z_patches.shape == z_patches.shape
    assert alone.z_cls.shape == (8, 32)
    assert alone.log_error.shape == (8,)


def test_latents_are_normalised_and_untrained_prediction_is_no_change() -> None:
    model = tiny().eval()
    z_cls, z_patches = model.encode(frames())
    torch.testing.assert_close(normalise(z_cls), z_cls, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(normalise(z_patches), z_patches, atol=1e-3, rtol=1e-3)
    predicted = model.predict(z_cls, torch.randn(8, 16)).z_cls
    torch.testing.assert_close(predicted, z_cls, atol=1e-3, rtol=1e-3)


def test_floats_and_bytes_give_the_same_latents() -> None:
    model = tiny().eval()
    torch.testing.assert_close(model.encode(frames())[0], model.encode(frames() / 255)[0])


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_hidden_tokens_do_not_leak(stem: str) -> None:
    model = tiny(encoder={"patch": 8, "stem": stem, **SHAPE}).eval()
    images = frames(1) / 255
    visible = torch.tensor([[0, 1, 4, 5]])
    changed = images.clone()
    changed[..., 16:, 16:] = 0.5  # tokens 10, 11, 14, 15
    cls, patches = model.encoder(images, visible)
    again, patches_again = model.encoder(changed, visible)
    assert torch.equal(cls, again)
    assert torch.equal(patches, patches_again)
    assert patches.shape == (1, 4, 32)


def test_a_model_survives_the_disk(tmp_path: Path) -> None:
    model = tiny().eval()
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = load_model(tmp_path)
    assert again.online is None
    z_cls, z_patches = model.encode(frames())
    torch.testing.assert_close(again.encode(frames())[0], z_cls, rtol=0, atol=0)
    action = torch.randn(8, 16)
    one, two = (m.predict(z_cls, action, z_patches) for m in (model, again))
    assert torch.equal(one.z_cls, two.z_cls)
    assert again.config == model.config
    onward = load_model(tmp_path, trainable=True)
    assert onward.training
    onward.before_step(0)
    onward(batch())[0].backward()


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_cannot_be_loaded_is_one_line_that_names_it(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises((ModelError, ConfigError), match=match) as caught:
            load_model(tmp_path)
        assert "\n" not in str(caught.value)

    refused("config.json: not found")
    (tmp_path / "config.json").write_text("{")
    refused("not JSON")
    model = tiny()
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())["settings"]
    _edit(tmp_path, format_version=99)
    refused("config.json: version 99 is newer than this software's 1")
    _edit(tmp_path, format_version=1, model="dreamer")
    refused("'dreamer' is unknown")
    _edit(tmp_path, model="iwm", settings={**settings, "predictor": {**SHAPE, "depth": 2}})
    refused("has no tensor predictor.blocks.1")
    _edit(tmp_path, settings={**settings, "encoder": {**settings["encoder"], "patch": 16}})
    refused(r"has shape \[.*the model's has \[")
    _edit(tmp_path, settings={**settings, "patches": 3})
    refused("settings.*patches|patches")
    _edit(tmp_path, settings=settings)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "encoder.extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    refused("holds tensor encoder.extra")
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    refused("cannot be read")
    (tmp_path / "model.safetensors").unlink()
    refused("not found")


def test_images_of_another_size_are_refused_naming_both() -> None:
    with pytest.raises(ModelError, match=r"64x64.*32x32"):
        tiny().encode(frames(1, 64))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"image_size": [30, 32]}, "multiple of"),
        ({"encoder": {"width": 33, "heads": 2}}, "encoder.width 33"),
        ({"predictor": {"width": 32, "heads": 5}}, "predictor.width 32"),
        ({"variant": "abstract"}, "variant"),
        ({"colour": 1}, "colour"),
    ],
)
def test_wrong_settings_are_named(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_model("iwm", **{**TINY, **over})


def test_an_unknown_model_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="known: action, embodied, iwm"):
        create_model("dreamer")


@pytest.mark.parametrize(("variant", "depth"), [("core", 8), ("invariant", 4), ("equivariant", 16)])
def test_variants_differ_in_the_predictor(variant: str, depth: int) -> None:
    config = model_config({"variant": variant, "predictor": {"width": 32, "heads": 2}})
    assert config.predictor_depth == depth
    predictor = Predictor(model_config({**TINY, "variant": variant, "predictor": {**SHAPE}}))
    assert len(predictor.blocks) == 1  # an explicit depth wins


def test_the_defaults_are_the_shapes_of_the_source_documents() -> None:
    with torch.device("meta"):
        model = IWM(model_config({}), trainable=False)
    encoder = sum(p.numel() for p in model.encoder.parameters())
    predictor = sum(p.numel() for p in model.predictor.parameters())
    assert 85e6 < encoder < 87e6
    assert 55e6 < predictor < 150e6
    assert model.latent_dim == 768
    assert model.config.grid == (14, 14)


def test_timm_weights_are_loaded_from_a_local_file(tmp_path: Path) -> None:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(1)
    donor = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=10
    )
    path = tmp_path / "vit.safetensors"
    save_file(donor.state_dict(), path)
    model = tiny(encoder={"patch": 8, "weights": str(path), **SHAPE})
    assert torch.equal(model.encoder.vit.cls_token, donor.cls_token)
    assert model.online is not None
    assert torch.equal(model.online.vit.cls_token, donor.cls_token)
    with pytest.raises(ModelError) as caught:
        tiny(encoder={"patch": 16, "weights": str(path), **SHAPE})
    assert str(caught.value) == (
        f"{path}: patch_embed.proj.weight has shape [32, 3, 8, 8], the model's has [32, 3, 16, 16]"
    )
    with pytest.raises(ModelError, match=r"absent\.safetensors"):
        tiny(encoder={"patch": 8, "weights": str(tmp_path / "absent.safetensors"), **SHAPE})


@pytest.mark.parametrize("size", [[96, 96], [96, 64], [32, 32]])
def test_timm_weights_of_another_image_size_keep_their_places(
    tmp_path: Path, size: list[int]
) -> None:
    import timm

    torch.manual_seed(1)
    donor = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=32, depth=1, num_heads=2, num_classes=10
    )
    # A position embedding that grows linearly downwards can be read on any grid.
    with torch.no_grad():
        donor.pos_embed[:, 0] = 7.0
        donor.pos_embed[0, 1:] = torch.arange(4.0).repeat_interleave(4)[:, None]
    path = tmp_path / "vit.safetensors"
    timm.models.save_for_hf(donor, str(tmp_path), safe_serialization=True)
    (tmp_path / "model.safetensors").rename(path)

    model = tiny(image_size=size, encoder={"patch": 16, "weights": str(path), **SHAPE})
    assert torch.equal(model.encoder.vit.blocks[0].mlp.fc1.weight, donor.blocks[0].mlp.fc1.weight)
    places = model.encoder.vit.pos_embed
    rows, columns = model.config.grid
    assert places.shape == (1, 1 + rows * columns, 32)
    assert (places[:, 0] == 7.0).all()
    grid = places[0, 1:].view(rows, columns, 32)
    assert (grid.diff(dim=0) > 0).all()
    torch.testing.assert_close(grid, grid[:, :1].expand_as(grid))
    torch.testing.assert_close(grid.mean(), torch.tensor(1.5), atol=0.05, rtol=0)
    assert model.eval().encode(frames(2, 96)[..., : size[0], : size[1]])[0].shape == (2, 32)


@pytest.mark.parametrize("shape", [(1, 13, 32), (1, 17, 16), (17, 32)])
def test_position_embeddings_that_cannot_be_resampled_are_named(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """No square grid, another width, another rank."""
    path = tmp_path / "vit.safetensors"
    weights = {k: v.clone() for k, v in tiny().encoder.vit.state_dict().items()}
    save_file({**weights, "pos_embed": torch.zeros(shape)}, path)
    with pytest.raises(ModelError, match=r"pos_embed has shape \[.*the model's has \[1, 17, 32\]"):
        tiny(encoder={"patch": 8, "weights": str(path), **SHAPE})
