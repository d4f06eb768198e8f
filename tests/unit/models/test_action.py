from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iwm.data.augment import AUG_DIM, jitter
from iwm.data.batch import Batch
from iwm.errors import ConfigError, ModelError
from iwm.models.action import ActionIWM, History
from iwm.models.action_windows import augment_windows
from iwm.models.registry import create_model, load_model
from iwm.objectives.contrast import action_contrast, frame_contrast, squared_distance
from iwm.objectives.gather import Part

NAMES = ("noop", "left", "right")
TINY: dict[str, Any] = {
    "image_size": [32, 32],
    "vocabulary": list(NAMES),
    "history": 3,
    "encoder": {"patch": 8, "width": 32, "depth": 1, "heads": 2, "pool": "flat"},
    "dynamics": {"width": 32, "depth": 2, "heads": 2, "patch_depth": 1},
}


def tiny(*, awake: bool = False, **over: Any) -> ActionIWM:
    """A tiny model; ``awake`` gives the zero-initialised layers something to say."""
    torch.manual_seed(0)
    model = create_model("action", **{**TINY, **over})
    assert isinstance(model, ActionIWM)
    if awake:
        with torch.no_grad():
            for parameter in model.dynamics.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def windows(n: int = 6, length: int = 5, *, numbers: int = 0, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    zeros = torch.zeros(n, dtype=torch.int64)
    shape = (n, length, 3, 32, 32)
    action = torch.randint(0, len(NAMES), (n, length), generator=generator)
    return Batch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        action=action if not numbers else torch.full_like(action, -1),
        reward=torch.zeros(n, length),
        done=torch.zeros(n, length, dtype=torch.bool),
        recording=zeros,
        episode=zeros,
        step=zeros,
        keys=[f"r/000000/{i:06d}" for i in range(n)],
        action_vector=torch.randn(n, length, numbers, generator=generator) if numbers else None,
    )


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"vocabulary": [], "action_dim": 2},
        {"augment": {"mirror": [["left", "right"]], "jitter_share": 0.5}},
        {"objective": {"variance": 1.0, "covariance": 0.1}, "history": 1},
        {"encoder": {**TINY["encoder"], "readout_channels": 4}},
        {"objective": {"contrast": 0.0, "action_contrast": 0.0}},
        {"objective": {"inverse": 0.0}},
    ],
)
def test_everything_that_trains_gets_a_gradient(over: dict[str, Any]) -> None:
    model = tiny(awake=True, **over)
    model.after_step(1.0)
    model.before_step(3)
    loss, logs = model(windows(numbers=over.get("action_dim", 0)))
    loss.backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        # With a history of one frame nothing is ever looked back at.
        if parameter.grad is None and "distance_bias" not in name
    ]
    assert not silent
    assert torch.isfinite(loss)
    assert {"effective_rank", "min_std", "loss_prediction", "loss_rollout"} <= set(logs)


def test_a_window_at_once_is_the_same_as_step_by_step() -> None:
    model = tiny(awake=True).eval()
    batch = windows(4, 6)
    latents = model.encode(batch.images.flatten(0, 1))[0].view(4, 6, -1)
    actions = model.action_vectors(batch.action)
    with torch.no_grad():
        features, _ = model.dynamics(latents, actions)
        whole = model.dynamics.next_cls(latents.unsqueeze(2), features)
    for last in range(6):
        history = History(latents[:, :last], actions[:, :last])
        alone = model.predict(latents[:, last], actions[:, last], history=history)
        torch.testing.assert_close(alone.z_cls, whole[:, last, 0], atol=1e-5, rtol=1e-5)


def test_predictions_see_the_past_but_not_the_future_and_not_beyond_the_history() -> None:
    model = tiny(awake=True).eval()
    latents = torch.randn(1, 6, 32, requires_grad=True)
    actions = model.action_vectors(torch.zeros(1, 6, dtype=torch.long))
    model.dynamics(latents, actions)[0][0, 4, 0].sum().backward()
    assert latents.grad is not None
    reached = latents.grad[0].abs().sum(-1) > 0
    # Two blocks that look two frames back reach four frames back.
    assert reached.tolist() == [True, True, True, True, True, False]
    latents.grad = None
    one_block = tiny(awake=True, dynamics={**TINY["dynamics"], "depth": 1}).eval()
    one_block.dynamics(latents, actions)[0][0, 4, 0].sum().backward()
    assert (latents.grad[0].abs().sum(-1) > 0).tolist() == [False, False, True, True, True, False]


def test_other_actions_are_predicted_with_history_only_where_it_is_remembered() -> None:
    model = tiny(awake=True).eval()
    batch = windows(3, 4)
    latents = torch.randn(3, 4, 32)
    actions = model.action_vectors(batch.action)
    assert model.learning is not None
    others = model.learning.others(actions, batch.action, Part.whole(3))
    assert others.shape == (3, 4, len(NAMES), model.aug_dim)
    assert torch.equal(others[:, :, 0], actions)
    remember = torch.tensor([False, False, True, False])
    with torch.no_grad():
        features, _ = model.dynamics(latents, actions, others, remember)
        predicted = model.dynamics.next_cls(latents.unsqueeze(2), features)
    for step, history in ((1, None), (2, History(latents[:, :2], actions[:, :2]))):
        for stream in range(others.shape[2]):
            expected = model.predict(latents[:, step], others[:, step, stream], history=history)
            torch.testing.assert_close(
                predicted[:, step, 1 + stream], expected.z_cls, atol=1e-5, rtol=1e-5
            )


def test_a_rollout_is_repeated_prediction() -> None:
    model = tiny(awake=True).eval()
    start = torch.randn(2, 32)
    actions = model.action_vectors(torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]]))
    rolled = model.rollout(start, actions)
    latent, seen = start, []
    for step in range(4):
        history = History(torch.stack(seen, 1), actions[:, :step]) if seen else None
        prediction = model.predict(latent, actions[:, step], history=history)
        torch.testing.assert_close(rolled.z_cls[:, step], prediction.z_cls, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            rolled.log_error[:, step], prediction.log_error, atol=1e-4, rtol=1e-4
        )
        seen.append(latent)
        latent = prediction.z_cls


def test_a_mirrored_window_is_the_window_seen_in_a_mirror() -> None:
    model = tiny(augment={"mirror": [["left", "right"]], "mirror_share": 1.0})
    batch = windows(2, 3)
    images = batch.images.float() / 255
    generator = torch.Generator().manual_seed(0)
    flipped, ids, difference = augment_windows(
        images, batch.action[:, :-1], model.config, Part.whole(2), generator
    )
    torch.testing.assert_close(flipped, images.flip(-1))
    assert torch.equal(ids, torch.tensor([0, 2, 1])[batch.action[:, :-1]])
    assert not difference.any()


def test_jitter_differences_are_the_augmentation_part_of_the_action() -> None:
    model = tiny(augment={"jitter_share": 1.0})
    batch = windows(2, 3)
    still = batch.images[:, :1].expand(-1, 3, -1, -1, -1).float() / 255
    generator = torch.Generator().manual_seed(0)
    images, _, difference = augment_windows(
        still, batch.action[:, :-1], model.config, Part.whole(2), generator
    )
    for step in range(2):
        torch.testing.assert_close(
            jitter(images[:, step], difference[:, step]), images[:, step + 1], atol=1e-4, rtol=1e-4
        )


@given(st.lists(st.integers(-1, len(NAMES) - 1), min_size=1, max_size=6))
@settings(max_examples=25)
def test_action_vectors_are_one_hot_or_nothing(ids: list[int]) -> None:
    vectors = tiny().action_vectors(torch.tensor(ids))
    assert vectors.shape == (len(ids), AUG_DIM + len(NAMES))
    for vector, number in zip(vectors, ids, strict=True):
        expected = [] if number < 0 else [AUG_DIM + number]
        assert vector.nonzero().flatten().tolist() == expected


def test_actions_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ModelError, match="outside the model's vocabulary of 3: noop, left, right"):
        tiny().action_vectors(torch.tensor([3]))
    model = tiny(vocabulary=[], action_dim=2)
    with pytest.raises(ModelError, match="have 3 numbers, the model takes 2"):
        model.action_vectors(torch.tensor([-1]), torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"vocabulary": []}, "no actions"),
        (
            {"objective": {"contrast": 0.0, "action_contrast": 0.0, "inverse": 0.0}},
            "nothing would teach the encoder",
        ),
        ({"vocabulary": ["a", "a"]}, "names an action twice"),
        ({"augment": {"mirror": [["left", "up"]]}}, "'up', which is not an action of the data"),
        ({"dynamics": {"width": 33, "heads": 2}}, "model.dynamics.width 33"),
        ({"image_size": [30, 32]}, "not a multiple"),
    ],
)
def test_wrong_settings_are_named(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**over)


def test_saved_and_loaded_it_predicts_the_same(tmp_path: Path) -> None:
    model = tiny(awake=True).eval()
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, ActionIWM)
    assert loaded.vocabulary == NAMES
    images = windows(2, 2).images[:, 0]
    cls, patches = model.encode(images)
    action = model.action_vectors(torch.tensor([0, 2]))
    ours, theirs = model.predict(cls, action, patches), loaded.predict(cls, action, patches)
    assert torch.equal(ours.z_cls, theirs.z_cls)
    assert ours.z_patches is not None
    assert theirs.z_patches is not None
    assert torch.equal(ours.z_patches, theirs.z_patches)
    with pytest.raises(ModelError, match="images are 16x16"):
        loaded.encode(images[..., :16, :16])


def test_training_without_trainable_parts_or_with_single_frames_is_refused() -> None:
    with pytest.raises(ModelError, match="at least two frames"):
        tiny()(windows(2, 1))


def test_frame_contrast_is_cross_entropy_over_distances() -> None:
    frames = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    distance = squared_distance(frames[:1], frames)
    torch.testing.assert_close(distance, torch.tensor([[0.0, 4.5, 8.0]]))
    loss = frame_contrast(frames[:1], frames, torch.tensor([1]), torch.tensor(2.0))
    expected = 2 * 4.5 + torch.tensor([0.0, -9.0, -16.0]).logsumexp(0)
    torch.testing.assert_close(loss, expected)


def test_with_its_habit_as_prior_a_model_that_ignores_actions_gains_nothing() -> None:
    outcome = torch.randn(5, 8)
    same = torch.randn(5, 1, 8).expand(-1, 3, -1)
    prior = torch.tensor([0.7, 0.2, 0.1]).log().expand(5, -1)
    loss = action_contrast(same, outcome, torch.tensor(10.0), prior)
    torch.testing.assert_close(loss, torch.full((5,), -torch.tensor(0.7).log().item()))
    assert action_contrast(same, outcome, torch.tensor(10.0)).mean() > loss.mean()


def test_a_tiny_world_is_learned() -> None:
    """A bright square that moves left and right: predictions tell the actions apart."""
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)

    def world(n: int, length: int) -> Batch:
        batch = windows(n, length)
        ids = torch.randint(0, 3, (n, length), generator=generator)
        place = torch.randint(8, 20, (n,), generator=generator)
        images = torch.zeros(n, length, 3, 32, 32, dtype=torch.uint8)
        for t in range(length):
            for row in range(n):
                images[row, t, :, 12:20, place[row] : place[row] + 6] = 255
            place = (place + torch.tensor([0, -3, 3])[ids[:, t]]).clamp(0, 26)
        return Batch(**{**vars(batch), "images": images, "action": ids})

    losses = []
    for step in range(150):
        model.before_step(step, statistics=False)
        loss, logs = model(world(16, 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step(step / 150)
        losses.append(float(logs["loss_action_contrast"]))
    assert sum(losses[-20:]) / 20 < 0.5 * sum(losses[:20]) / 20
