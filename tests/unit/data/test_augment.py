from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iwm.data.augment import (
    ACTION_FIELDS,
    AUG_DIM,
    JITTER,
    action_scale,
    crop_flip,
    destroy,
    jitter,
    luma,
    make_views,
    sample_jitter,
    sample_views,
    source_from_target,
    to_float,
)
from iwm.data.config import AugmentConfig

seeds = st.integers(0, 2**32)
configs = st.builds(
    AugmentConfig,
    brightness=st.floats(0, 1.5),
    contrast=st.floats(0, 1.5),
    saturation=st.floats(0, 1.5),
    hue=st.floats(0, 3.1),
    blur=st.floats(0, 1),
    greyscale=st.floats(0, 1),
    solarize=st.floats(0, 1),
)


def images(seed: int, n: int = 3, height: int = 24, width: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


@settings(max_examples=40, deadline=None)
@given(seeds, configs)
def test_the_action_vector_describes_the_map_between_the_views_exactly(
    seed: int, config: AugmentConfig
) -> None:
    frames = images(seed)
    drawn = sample_views(len(frames), config, torch.Generator().manual_seed(seed))
    source, target = make_views(frames, drawn)
    again = source_from_target(target, drawn.action())
    # Solarize jumps at its threshold: a pixel within rounding of it may fall on either side.
    wrong = (again - source).abs().amax(1) > 1e-4
    assert wrong.float().mean() < 0.005
    plain = jitter(crop_flip(to_float(frames), drawn.crop, drawn.flip), drawn.source)
    torch.testing.assert_close(
        jitter(plain, drawn.action()[:, :JITTER]), target, atol=1e-4, rtol=1e-4
    )


@settings(max_examples=40, deadline=None)
@given(seeds, configs)
def test_jitters_form_a_commutative_group(seed: int, config: AugmentConfig) -> None:
    frames = to_float(images(seed))
    generator = torch.Generator().manual_seed(seed)
    p, q = (sample_jitter(len(frames), config, generator) for _ in range(2))
    both = jitter(frames, p + q)
    torch.testing.assert_close(jitter(jitter(frames, p), q), both, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(jitter(jitter(frames, q), p), both, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(jitter(jitter(frames, p), -p), frames, atol=1e-4, rtol=1e-4)


def test_each_jitter_does_what_its_name_says() -> None:
    frames = to_float(images(0))

    def only(index: int, value: float) -> torch.Tensor:
        parameters = torch.zeros(len(frames), JITTER)
        parameters[:, index] = value
        return jitter(frames, parameters)

    torch.testing.assert_close(only(0, 1.0), 2 * frames)
    grey, mean = luma(frames), luma(frames).mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(luma(only(1, 1.0)) - mean, 2 * (grey - mean))
    torch.testing.assert_close(only(2, 1.0) - grey, 2 * (frames - grey))
    torch.testing.assert_close(luma(only(3, 2.0)), grey)
    torch.testing.assert_close(only(3, 2 * torch.pi), frames, atol=1e-5, rtol=1e-5)
    assert (only(3, 2.0) - frames).abs().max() > 0.1


def test_destructive_operations() -> None:
    frames = to_float(images(1))
    none, some = torch.zeros(3), torch.ones(3)
    assert torch.equal(destroy(frames, none, none, none), frames)
    grey = destroy(frames, none, some, none)
    torch.testing.assert_close(grey, luma(frames).expand_as(frames))
    inverted = destroy(frames, none, none, 0.5 * some)
    assert inverted.max() <= 0.5
    assert torch.equal(inverted[frames <= 0.5], frames[frames <= 0.5])
    blurred = destroy(frames, torch.tensor([0.0, 0.05, 0.2]), none, none)
    roughness = (blurred[..., 1:] - blurred[..., :-1]).abs().mean(dim=(1, 2, 3))
    assert torch.equal(blurred[0], frames[0])
    assert roughness[0] > 2 * roughness[1] > 4 * roughness[2]


def test_only_the_source_is_destroyed_and_geometry_is_shared() -> None:
    config = AugmentConfig(
        brightness=0, contrast=0, saturation=0, hue=0, blur=0, greyscale=0, solarize=0
    )
    frames = images(2, n=16)
    drawn = sample_views(16, config, torch.Generator().manual_seed(0))
    source, target = make_views(frames, drawn)
    torch.testing.assert_close(source, target)
    assert drawn.action().abs().max() == 0
    destroyed = AugmentConfig(
        brightness=0, contrast=0, saturation=0, hue=0, blur=1, greyscale=1, solarize=1
    )
    drawn = sample_views(16, destroyed, torch.Generator().manual_seed(0))
    source, again = make_views(frames, drawn)
    torch.testing.assert_close(again, target)
    assert ((source - again).abs().mean(dim=(1, 2, 3)) > 0.01).all()
    assert (drawn.action()[:, [4, 6, 7]] == 1).all()


def test_the_shared_crop_and_flip() -> None:
    frames = to_float(images(3))
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(3, 1)
    torch.testing.assert_close(crop_flip(frames, whole, torch.zeros(3)), frames)
    torch.testing.assert_close(crop_flip(frames, whole, torch.ones(3)), frames.flip(-1))
    corner = torch.tensor([[-0.5, -0.5, 0.5, 0.5]]).repeat(3, 1)
    cropped = crop_flip(frames, corner, torch.zeros(3))
    assert (cropped[:, :, 0, 0] - frames[:, :, 0, 0]).abs().max() < 0.3
    assert cropped.amax() <= frames[..., :13, :11].amax() + 1e-5


def test_the_draws_depend_on_the_seed_and_not_on_the_split_into_ranks() -> None:
    config = AugmentConfig()
    drawn = sample_views(8, config, torch.Generator().manual_seed(5))
    again = sample_views(8, config, torch.Generator().manual_seed(5))
    assert torch.equal(drawn.action(), again.action())
    halves = [drawn.rows(slice(0, 4)).action(), drawn.rows(slice(4, 8)).action()]
    assert torch.equal(torch.cat(halves), drawn.action())
    other = sample_views(8, config, torch.Generator().manual_seed(6))
    assert not torch.equal(drawn.action(), other.action())


def test_names_scales_and_width_of_the_action_vector_agree() -> None:
    assert len(action_scale(AugmentConfig())) == len(ACTION_FIELDS) <= AUG_DIM
    drawn = sample_views(64, AugmentConfig(), torch.Generator().manual_seed(0))
    assert drawn.action().shape == (64, AUG_DIM)
    assert drawn.action()[:, len(ACTION_FIELDS) :].abs().max() == 0
    scale = action_scale(AugmentConfig(blur=0.0))
    assert scale[4] == scale[5] == 0
