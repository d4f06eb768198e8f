"""The whole model: shapes, gradients, episodes, imagination, bad input, disk, trainer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import trainruns as runs
from fixtures import ACTIONS
from tinyaime import TINY, sequences, tiny, windows

from iwm.data.reader import ShardStore
from iwm.errors import ConfigError, ModelError, TrainingError
from iwm.models.aime.imagine import foretold
from iwm.models.registry import create_model, load_model
from iwm.models.transfer import start_from
from iwm.objectives.aime import TASKS
from iwm.objectives.gather import Part
from iwm.settings import to_dict

DOCS = Path(__file__).parents[4] / "docs" / "aime.md"


def test_the_documented_example_runs_with_the_documented_shapes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found is not None
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    exec(compile(found[1], str(DOCS), "exec"), scope)
    outputs = scope["outputs"]
    expected = {
        "context": (8, 16, 256),
        "z_mean": (8, 16, 36),
        "z_logvar": (8, 16, 36),
        "z_posterior": (8, 16, 36),
        "z_prior": (8, 16, 36),
        "pi": (8, 16, 15),
        "mu_k": (8, 16, 15, 36),
        "sigma_k": (8, 16, 15, 36),
        "h_t": (8, 16, 512),
        "attention_maps": (8, 16, 5, 8, 8),
        "reconstructions": (8, 16, 3, 64, 64),
    }
    assert {name: tuple(outputs[name].shape) for name in expected} == expected
    assert scope["model"].recurrence.input_dim == 298
    losses, tasks = scope["losses_dict"], scope["task_losses"]
    assert [losses[name] for name in TASKS] == tasks
    assert all(torch.isfinite(value) for value in losses.values())
    printed = capsys.readouterr().out
    assert re.fullmatch(r"ELBO: [\d.]+\nPerceiver: [\d.]+\nPredictive: [\d.]+\n", printed)


def test_the_defaults_are_the_source_documents() -> None:
    config = to_dict(tiny().config.__class__())
    assert {key: config[key] for key in ("latent_dim", "hidden_dim", "max_components")} == {
        "latent_dim": 36,
        "hidden_dim": 512,
        "max_components": 15,
    }
    assert config["n_lstm_layers"] == 1
    assert config["use_orthogonal"] is True
    attention, perceiver = config["attention_config"], config["perceiver_config"]
    assert (attention["num_slots"], attention["slot_dim"]) == (5, 64)
    assert (perceiver["codebook_size"], perceiver["context_dim"]) == (256, 256)
    assert config["encoder_config"]["base_channels"] == 32
    assert config["decoder_config"]["base_channels"] == 32
    assert config["perceiver_config"]["commitment"] == 0.25
    loss = config["loss"]
    assert (loss["beta"], loss["lambda_recon"], loss["lambda_att_dyn"]) == (1.0, 1.0, 0.1)
    assert (loss["lambda_gram"], loss["entropy_weight"]) == (0.05, 0.1)
    rgb = config["rgb_config"]
    assert (rgb["mu"], rgb["lambd"], rgb["alpha_steps"]) == (0.9, 1.0, 3)


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"use_rgb": True},
        {"use_rgb": False, "balance": "sum"},
        {"max_components": 1},
        {"n_lstm_layers": 2, "vocabulary": [], "action_dim": 2},
    ],
)
def test_everything_that_trains_gets_a_gradient(over: dict[str, Any]) -> None:
    model = tiny(**over)
    model.after_step(1.0)
    model.before_step(0)
    loss, logs = model(windows())
    loss.backward()
    silent = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    }
    if over.get("max_components") == 1:  # no sticks: nothing to concentrate
        silent -= {name for name in silent if "concentration" in name or "0" in name}
    assert not silent
    assert all(torch.isfinite(value) for value in logs.values())
    assert torch.isfinite(loss)


def test_the_gradient_of_the_bound_is_that_of_finite_differences() -> None:
    """Along random directions through every parameter that the quantiser does not stand before."""
    model = tiny().double().eval()
    observations, actions = (x.double() for x in sequences())
    held = ("perceiver.tokenizer", "teacher", "balancer")
    parameters = [p for n, p in model.named_parameters() if not n.startswith(held)]

    def bound() -> torch.Tensor:
        torch.manual_seed(3)  # the same noise each time
        return model.compute_total_loss(observations, actions)[0]["total_elbo"]

    slopes = torch.autograd.grad(bound(), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        expected = sum(
            float((g * d).sum()) for g, d in zip(slopes, way, strict=True) if g is not None
        )
        values, step = [], 1e-6
        for sign in (1, -2, 1):
            with torch.no_grad():
                for p, d in zip(parameters, way, strict=True):
                    p.add_(sign * step * d)
                values.append(float(bound()))
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_the_sum_of_the_tasks_and_beta_grows() -> None:
    model = tiny(loss={"beta_warmup": 0.5})
    assert model.beta == 0
    model.after_step(0.25)
    assert model.beta == 0.5
    model.after_step(0.9)
    assert model.beta == 1
    model.before_step(0)
    loss, logs = model(windows())
    total = sum(float(logs[f"loss_{name}"]) for name in TASKS)
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    assert 1 <= float(logs["effective_components"]) <= 5
    with torch.no_grad():
        assert not model(windows())[0].requires_grad


def test_parts_of_a_batch_weigh_what_they_hold() -> None:
    model = tiny().eval()
    observations, actions = sequences()
    torch.manual_seed(0)
    whole = model.compute_total_loss(observations, actions)[0]
    half = Part(0, (2, 6))

    def gather(rows: torch.Tensor) -> torch.Tensor:
        return rows

    object.__setattr__(half, "gather", gather)
    torch.manual_seed(0)
    part = model.compute_total_loss(observations, actions, part=half)[0]
    for name in ("recon", "kl_z", "next_token", "attention_kl"):
        torch.testing.assert_close(part[name], 0.5 * whole[name])


def test_the_teacher_follows_in_training_and_gets_no_gradient() -> None:
    model = tiny()
    assert model.teacher is not None
    with torch.no_grad():
        model.encoder.features.layers[0].weight.add_(1)
    before = model.teacher.layers[0].weight.clone()  # type: ignore[index,union-attr]
    model.eval().forward_sequence(*sequences())
    assert torch.equal(model.teacher.layers[0].weight, before)  # type: ignore[index,union-attr]
    model.train().forward_sequence(*sequences())
    moved = model.teacher.layers[0].weight - before  # type: ignore[index,union-attr]
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - model.config.teacher_decay))
    assert not any(p.requires_grad for p in model.teacher.parameters())


@torch.no_grad()
def test_episodes_within_a_sequence_know_nothing_of_each_other() -> None:
    model = tiny().eval()
    observations, actions = sequences()
    dones = torch.zeros(2, 6, dtype=torch.bool)
    dones[:, 2] = True
    torch.manual_seed(0)
    one = model.forward_sequence(observations, actions, dones)
    other_frames, other_actions = observations.clone(), actions.clone()
    other_frames[:, :3] = 0
    other_actions[:, :3] = 0
    torch.manual_seed(0)
    two = model.forward_sequence(other_frames, other_actions, dones)
    for name in ("z_mean", "h_t", "mu_k", "pi", "attention_maps", "reconstructions", "context"):
        assert torch.equal(one[name][:, 3:], two[name][:, 3:]), name
    assert torch.equal(one["starts"][:, 3], torch.ones(2, dtype=torch.bool))


# -- imagination --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["sample", "mean", "mode"])
def test_rollouts_have_frames_latents_and_attention(how: Any) -> None:
    model = tiny().eval()
    observations, actions = sequences(length=9)
    found = model.rollout(observations[:, :3], actions[:, :7], horizon=5, how=how)
    assert found.frames is not None
    assert found.frames.shape == (2, 5, 3, 32, 32)
    assert 0 <= found.frames.min() <= found.frames.max() <= 1
    assert found.z.shape == (2, 5, 4)
    assert found.h.shape == (2, 5, 16)
    torch.testing.assert_close(found.attention_maps.sum((-2, -1)), torch.ones(2, 5, 3))
    torch.testing.assert_close(found.log_pi.exp().sum(-1), torch.ones(2, 5))


def test_imagination_goes_on_where_it_stopped_and_depends_on_the_actions() -> None:
    model = tiny().eval()
    observations, actions = sequences(length=9)
    state = model.observe(observations[:, :3], actions[:, :2])
    whole = model.imagine(state, actions[:, 2:8], "mean")
    half = model.imagine(state, actions[:, 2:5], "mean")
    rest = model.imagine(half.state, actions[:, 5:8], "mean", frames=False)
    torch.testing.assert_close(torch.cat([half.z, rest.z], dim=1), whole.z)
    assert rest.frames is None
    other = model.imagine(state, 1 - actions[:, 2:8], "mean")
    assert not torch.allclose(other.z[:, 0], whole.z[:, 0])


@torch.no_grad()
def test_the_first_imagined_prior_is_that_of_the_sequence() -> None:
    """What forward_sequence gives as prior of frame 3 is what is imagined after three frames."""
    model = tiny().eval()
    with torch.no_grad():  # a posterior that is as good as certain: sample and mean agree
        model.encoder.head[-1].bias[4:] = -40
    observations, actions = sequences()
    outputs = model.forward_sequence(observations, actions)
    state = model.observe(observations[:, :3], actions[:, :2])
    torch.testing.assert_close(state.z, outputs["z_mean"][:, 2])
    torch.testing.assert_close(state.maps, outputs["attention_maps"][:, 2], atol=1e-3, rtol=0.02)
    found = model.imagine(state, actions[:, 2:3], "mode")
    torch.testing.assert_close(found.h[:, 0], outputs["h_t"][:, 2], atol=0.02, rtol=0)
    distance = (found.z[:, :1] - outputs["mu_k"][:, 3]).abs().amax(-1).amin(-1)
    assert distance.max() < 0.02  # the heaviest component's mean is one of them


@torch.no_grad()
def test_frames_foretold_in_training_are_those_of_a_rollout() -> None:
    model = tiny().eval()
    model.encoder.head[-1].bias[4:] = -40  # sample and mean agree
    observations, actions = sequences(length=9)
    outputs = model.forward_sequence(observations, actions)
    frames, inside = foretold(model, outputs, actions, 5)
    found = model.rollout(observations[:, :4], actions[:, :8], 5, "mean")
    assert found.frames is not None
    torch.testing.assert_close(frames.clamp(0, 1), found.frames, atol=5e-3, rtol=0)
    assert inside.all()
    with pytest.raises(ModelError, match="9 frames are too short to foretell 9; expected at least"):
        foretold(model, outputs, actions, 9)


def test_what_is_foretold_teaches_the_prior_and_stops_at_an_episodes_end() -> None:
    model = tiny(loss={"lambda_open_loop": 2.0, "horizon": 4})
    observations, actions = sequences()
    dones = torch.zeros(2, 6, dtype=torch.bool)
    dones[:, 3] = True  # frames 4 and 5 are of another episode
    losses, outputs = model.compute_total_loss(observations, actions, dones)
    frames, inside = outputs["foretold"]
    assert inside.tolist() == [[True, True, False, False]] * 2
    error = 0.5 * (frames - observations[:, 2:]).square().flatten(2).sum(-1)[:, :2].mean() / 16
    torch.testing.assert_close(losses["open_loop"], error)
    rest = losses["total_predictive"] - 2 * losses["open_loop"]
    plain = losses["attention_kl"] + 0.1 * losses["attention_dynamics"] + losses["diversity"]
    torch.testing.assert_close(rest, plain)
    losses["open_loop"].backward()
    for part in (model.prior.common, model.prior.own, model.recurrence.context_ahead[0]):
        assert part.weight.grad is not None
        assert part.weight.grad.any()
    assert model.recurrence.lstm.weight_ih_l0.grad[:, -3:].any()


def test_many_candidates_from_one_state() -> None:
    model = tiny().eval()
    observations, actions = sequences(batch=1)
    state = model.observe(observations, actions[:, :5]).expand(4)
    moves = model.action_vectors(torch.tensor([[0, 1], [1, 1], [2, 0], [0, 1]]))
    found = model.imagine(state, moves, "mean", frames=False)
    assert torch.equal(found.z[0], found.z[3])
    assert not torch.allclose(found.z[0, 0], found.z[1, 0])


# -- bad input ----------------------------------------------------------------------------

GOOD = sequences()
NAN = GOOD[0].clone()
NAN[1, 2, 0, 3, 3] = float("nan")


@pytest.mark.parametrize(
    ("observations", "actions", "dones", "message"),
    [
        (GOOD[0][:, :, :, :16], GOOD[1], None, r"expected \[B, T, 3, 32, 32\]"),
        (GOOD[0][0], GOOD[1], None, r"are \[6, 3, 32, 32\], expected \[B, T, 3, 32, 32\]"),
        (GOOD[0][:0], GOOD[1][:0], None, r"expected \[B, T, 3, 32, 32\]"),
        (GOOD[0], GOOD[1][:, :5], None, r"actions are \[2, 5, 3\], expected \[2, 6, 3\]"),
        (GOOD[0], GOOD[1][..., :2], None, r"actions are \[2, 6, 2\], expected \[2, 6, 3\]"),
        (NAN, GOOD[1], None, r"observations \[2, 6, 3, 32, 32\] hold values that are not finite"),
        (GOOD[0], GOOD[1] / 0, None, r"actions \[2, 6, 3\] hold values that are not finite"),
        (GOOD[0][:, :1], GOOD[1][:, :1], None, r"expected \[B, T >= 2"),
        (GOOD[0], GOOD[1], torch.zeros(2, 5), r"dones are \[2, 5\], expected \[2, 6\]"),
    ],
)
def test_bad_input_is_refused_with_the_shape_expected(
    observations: torch.Tensor, actions: torch.Tensor, dones: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        tiny().forward_sequence(observations, actions, dones)


def test_bad_actions_of_rollouts_are_refused() -> None:
    model = tiny().eval()
    observations, actions = sequences()
    with pytest.raises(ModelError, match=r"actions are \[2, 6, 3\], expected \[2, 13, 3\]"):
        model.rollout(observations, actions, horizon=8)
    with pytest.raises(ModelError, match="at least 1, given 0"):
        model.rollout(observations, actions[:, :5], horizon=0)
    state = model.observe(observations, actions[:, :5])
    with pytest.raises(ModelError, match=r"expected \[2, K, 3\]"):
        model.imagine(state, actions[:1])
    with pytest.raises(ModelError, match=r"expected \[2, K, 3\]"):
        model.imagine(state, actions[:, :0])
    with pytest.raises(ModelError, match="outside the model's vocabulary of 3: noop, left, right"):
        model.action_vectors(torch.tensor([3]))
    with pytest.raises(ModelError, match="have 2 numbers, the model takes 0"):
        model.action_vectors(torch.tensor([0]), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"image_size": [60, 64]}, "not a multiple of 8"),
        ({"vocabulary": []}, "no actions"),
        ({"vocabulary": ["a", "a"]}, "twice"),
        ({"perceiver_config": {"width": 10, "heads": 4}}, "not a multiple of heads"),
        ({"max_component": 3}, "max_component"),
        ({"rgb_config": {"mu": 1.0}}, "rgb_config.mu"),
    ],
)
def test_wrong_settings_are_refused(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_model("vrnn", **{**TINY, **over})


# -- disk and trainer ---------------------------------------------------------------------


def test_a_saved_model_answers_alike(tmp_path: Path) -> None:
    model = tiny().eval()
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert not again.training
    observations, actions = sequences()
    one, two = (
        m.rollout(observations, actions.repeat(1, 2, 1)[:, :9], 4, "mean") for m in (model, again)
    )
    assert torch.equal(one.frames, two.frames)
    losses, _ = again.compute_total_loss(observations, actions)
    assert float(losses["gram"]) == 0  # no teacher in a released model
    on = load_model(tmp_path, trainable=True)
    assert on.training
    loss, _ = on(windows())
    loss.backward()
    assert torch.equal(on.teacher.layers[0].bias, on.encoder.features.layers[0].bias)


def test_a_mixture_goes_on_from_a_single_gaussian(tmp_path: Path) -> None:
    single = tiny(max_components=1)
    single.save_pretrained(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        mixture = tiny()
    fresh = {name: value.clone() for name, value in mixture.state_dict().items()}
    taken = start_from(mixture, tmp_path)
    theirs, now = single.state_dict(), mixture.state_dict()
    components = {name for name in now if name.startswith(("prior.own.", "prior.sticks."))}
    assert len(components) == 4
    for name in components:
        assert torch.equal(now[name], fresh[name])
    released = {name for name in now if not name.startswith(("teacher.", "balancer.", "progress"))}
    assert taken == len(released - components)
    for name in released - components:
        assert torch.equal(now[name], theirs[name]), name
    assert torch.equal(mixture.teacher.layers[0].bias, mixture.encoder.features.layers[0].bias)
    # And the other way: one component has nothing of its own to take.
    mixture.save_pretrained(tmp_path)
    assert start_from(tiny(max_components=1), tmp_path) == taken
    with pytest.raises(ModelError, match=r"has shape .*, the model's has"):
        start_from(tiny(hidden_dim=2 * mixture.config.hidden_dim), tmp_path)


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(tmp_path)


VRNN: dict[str, Any] = {
    **{key: value for key, value in runs.VALUES.items() if key != "model"},
    "model": {
        **TINY,
        "name": "vrnn",
        "use_rgb": True,
        "image_size": [64, 64],
        "vocabulary": list(ACTIONS),
    },
    "window": 4,
    "epochs": 1,
    "checkpoint_every": 2,
    "batch_size": 48,
}


class StopAt:
    """A tracker that stops the run at a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def start(self, step: int, parameters: dict[str, Any]) -> None:
        pass

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if step == self.at:
            self.trainer.request_stop(2)

    def finish(self, status: str) -> None:
        pass


def test_the_trainer_trains_it_and_goes_on_to_the_same_weights(
    tiny_store: ShardStore, tmp_path: Path
) -> None:
    runs.make(tiny_store, tmp_path / "a", base=VRNN).fit()
    stop = StopAt(2)
    stop.trainer = runs.make(tiny_store, tmp_path / "b", base=VRNN, trackers=(stop,))  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="stopped at step 2"):
        stop.trainer.fit()  # type: ignore[attr-defined]
    runs.make(tiny_store, tmp_path / "b", base=VRNN).fit()
    one, two = (load_model(tmp_path / name).state_dict() for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_it_trains_in_bfloat16() -> None:
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model(windows())
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_it_learns_a_moving_square(tiny_store: ShardStore, tmp_path: Path) -> None:
    """Three epochs: every task is better than at the start."""
    trainer = runs.make(
        tiny_store, tmp_path, base=VRNN, epochs=3, optim={"lr": 3e-3}, checkpoint_every=1000
    )
    model, batch = trainer.model, next(iter(trainer.batches.epoch(0)))
    model.after_step(1.0)  # type: ignore[operator]

    def losses() -> list[float]:
        torch.manual_seed(0)
        with torch.no_grad():
            _, logs = model.eval()(batch)
        return [float(logs[f"loss_{name}"]) for name in TASKS]

    before = losses()
    trainer.fit()
    after = losses()
    assert all(one < other for one, other in zip(after, before, strict=True)), (before, after)
