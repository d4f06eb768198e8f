import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from iwm.errors import DataError, ModelError
from iwm.planning.config import DistanceConfig
from iwm.planning.distance import TemporalDistance, fit_distance, merge


def walled_corridor(episodes=60, length=30, seed=0):
    """Random walks along a U of 20 cells whose ends lie side by side behind a wall.

    Returns latents of the cells, and the walks as cells and episodes.
    """
    rng = np.random.default_rng(seed)
    cells = torch.tensor([[float(i), 0.0] for i in range(10)] + [[9.0 - i, 1.5] for i in range(10)])
    walk, episode = [], []
    for number in range(episodes):
        place = int(rng.integers(20))
        for _ in range(length):
            walk.append(place)
            episode.append(number)
            place = int(np.clip(place + rng.choice([-1, 1]), 0, 19))
    return cells, np.array(walk), np.array(episode)


@pytest.fixture(scope="module")
def corridor():
    cells, walk, episode = walled_corridor()
    return cells, fit_distance(cells[walk], episode)


def test_steps_are_the_shortest_path_and_not_the_straight_line(corridor):
    cells, distance = corridor
    to_first = distance.to_goal(cells[0])(cells)
    assert to_first.tolist() == pytest.approx(list(range(20)), abs=1e-3)
    assert float((cells[19] - cells[0]).norm()) < 2  # neighbours through the wall
    assert distance.coverage == 1.0
    assert distance.link == 0.0


def test_latents_that_were_never_seen_are_judged_by_their_neighbours(corridor):
    cells, distance = corridor
    noisy = cells + 0.1 * torch.randn(cells.shape, generator=torch.Generator().manual_seed(0))
    learned = distance.to_goal(cells[0])(noisy)
    assert spearmanr(learned, range(20)).statistic > 0.98


def test_a_world_where_nothing_recurs_is_linked_by_look_alikes():
    cells, walk, episode = walled_corridor(episodes=40, length=12)
    generator = torch.Generator().manual_seed(1)
    latents = cells[walk] + 0.2 * torch.randn(len(walk), 2, generator=generator)
    distance = fit_distance(latents, episode, DistanceConfig(merge=0.01))
    assert distance.coverage >= 0.95
    assert 0 < distance.link < 1.5
    assert spearmanr(distance.to_goal(cells[0])(cells), range(20)).statistic > 0.9


def test_what_nobody_reached_is_as_far_as_can_be():
    latents = torch.tensor([[0.0], [1.0], [100.0], [101.0]])
    config = DistanceConfig(max_distance=50, max_link=0)
    distance = fit_distance(latents, np.array([0, 0, 1, 1]), config)
    assert distance.to_goal(latents[3])(latents).tolist() == pytest.approx([50, 50, 1, 0], abs=1e-3)
    # No one has been seen going back.
    assert distance.to_goal(latents[0])(latents)[1] == pytest.approx(50, abs=1e-3)


def test_the_radius_grows_until_the_nodes_fit():
    latents = torch.linspace(0, 1, 500).unsqueeze(1)
    nodes, node = merge(latents, 0.0, 40)
    assert len(nodes) <= 40
    assert node.max() == len(nodes) - 1
    assert float((nodes[node] - latents).abs().max()) < 0.1


def test_saved_and_read_again(corridor, tmp_path):
    cells, distance = corridor
    distance.save_pretrained(tmp_path)
    again = TemporalDistance.from_pretrained(tmp_path)
    assert torch.equal(again.to_goal(cells[3])(cells), distance.to_goal(cells[3])(cells))
    assert again.config == distance.config


def test_what_does_not_fit_is_one_line(corridor, tmp_path):
    _, distance = corridor
    with pytest.raises(ModelError, match="knows latents of 2 dimensions, the goal has 3"):
        distance.to_goal(torch.zeros(3))
    with pytest.raises(DataError, match="no two consecutive frames"):
        fit_distance(torch.zeros(5, 2), np.zeros(5, np.int64))
    with pytest.raises(ModelError, match="holds no model"):
        TemporalDistance.from_pretrained(tmp_path / "nothing")


def test_a_world_model_adds_the_steps_that_nobody_took():
    """Play walks a corridor forwards alone; the model knows that one can walk back."""
    cells = torch.eye(8) * 4
    config = DistanceConfig(max_link=0, neighbours=1)

    def imagine(latents):
        here = latents.argmax(1)
        return torch.stack([cells[(here + 1).clamp_max(7)], cells[(here - 1).clamp_min(0)]], 1)

    alone = fit_distance(cells, np.zeros(8, np.int64), config)
    helped = fit_distance(cells, np.zeros(8, np.int64), config, imagine)
    assert alone.imagined == 0
    assert alone.to_goal(cells[0])(cells[5:6]).item() == pytest.approx(config.max_distance)
    assert helped.to_goal(cells[0])(cells[5:6]).item() == pytest.approx(5 * 1.2, abs=0.01)
    assert helped.to_goal(cells[5])(cells[:1]).item() == pytest.approx(5, abs=0.01)
    # Nobody went on from the last cell: the game may end there.
    assert helped.imagined == 6


def test_what_was_tried_is_not_imagined():
    """A step that play has shown to lead nowhere stays so, whatever the model says."""
    cells = torch.eye(3) * 4
    config = DistanceConfig(max_link=0, neighbours=1)
    walk, episode = [0, 0, 1, 2], np.zeros(4, np.int64)
    actions = np.array([1, 0, 0, -1])  # the second action led from 0 to 0

    def imagine(latents):
        """The second action leads from everywhere to 2."""
        here = latents.argmax(1)
        return torch.stack([cells[(here + 1).clamp_max(2)], cells[2].expand(len(here), -1)], 1)

    believed = fit_distance(cells[walk], episode, config, imagine)
    assert believed.to_goal(cells[2])(cells[:1]).item() == pytest.approx(1.2, abs=0.01)
    known = fit_distance(cells[walk], episode, config, imagine, actions)
    assert known.imagined == 0
    assert known.to_goal(cells[2])(cells[:1]).item() == pytest.approx(2, abs=0.01)
