import numpy as np
import pytest
import torch

from iwm.errors import DataError, ModelError
from iwm.planning.config import StepsConfig
from iwm.planning.steps import StepNetwork, fit_steps

CONFIG = StepsConfig(hidden=32, steps=400, batch_size=128, horizon=9, far=12.0, anywhere=0.1)


@pytest.fixture(scope="module")
def one_way():
    """Episodes that go once around a circle of ten places, never back."""
    angle = torch.arange(10) * (2 * torch.pi / 10)
    places = torch.stack([angle.cos(), angle.sin()], 1)
    walks = [np.arange(start, start + 30) % 10 for start in range(10)]
    latents = places[np.concatenate(walks)]
    generator = torch.Generator().manual_seed(0)
    latents = latents + 0.02 * torch.randn(latents.shape, generator=generator)
    return places, fit_steps(latents, np.repeat(np.arange(10), 30), CONFIG)


def test_nearer_in_steps_is_less(one_way):
    places, network = one_way
    ahead = network.to_goal(places[5])(places[[1, 2, 3, 4, 5]])
    assert bool((ahead.diff() < 0).all())


def test_the_same_seed_fits_the_same_and_leaves_the_global_one_alone(one_way):
    places, _ = one_way
    episode = np.zeros(10, np.int64)
    config = StepsConfig(hidden=8, steps=3, batch_size=16)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, second = (fit_steps(places, episode, config) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first(places, places), second(places, places))


def test_saved_and_read_again(one_way, tmp_path):
    places, network = one_way
    network.save_pretrained(tmp_path)
    again = StepNetwork.from_pretrained(tmp_path)
    assert torch.equal(again.to_goal(places[0])(places), network.to_goal(places[0])(places))


def test_what_does_not_fit_is_one_line(one_way):
    _, network = one_way
    with pytest.raises(ModelError, match="knows latents of 2 dimensions, the goal has 3"):
        network.to_goal(torch.zeros(3))
    with pytest.raises(DataError, match="no episode has two frames"):
        fit_steps(torch.zeros(3, 2), np.arange(3))
