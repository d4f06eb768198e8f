"""Splits: stable as data grows, shares converge, empty ones are named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwm.errors import ConfigError
from iwm.gameplay.config import SplitConfig
from iwm.gameplay.splits import check_split, empty_splits, split_of

KNOWN = "tr tr tr va tr te tr tr tr tr tr tr tr tr va tr va tr tr tr tr tr tr tr"

names = st.text(min_size=1, max_size=12)
shares = st.floats(0, 0.49)
configs = st.builds(lambda val, test, salt: SplitConfig(val=val, test=test, salt=salt),
                    shares, shares, st.text(max_size=5))  # fmt: skip


@given(configs, st.dictionaries(names, st.integers(1, 20), min_size=1), names, st.integers(1, 30))
def test_adding_data_never_moves_an_episode(
    cfg: SplitConfig, recordings: dict[str, int], added: str, more: int
) -> None:
    def assign(counts: dict[str, int]) -> dict[tuple[str, int], str]:
        return {
            (name, episode): split_of(name, episode, cfg)
            for name, count in counts.items()
            for episode in range(count)
        }

    before = assign(recordings)
    after = assign(recordings | {added: recordings.get(added, 0) + more})
    assert before.items() <= after.items()


@given(names, st.integers(0, 10_000), shares, shares)
def test_changing_val_never_moves_anything_in_or_out_of_test(
    name: str, episode: int, first: float, second: float
) -> None:
    held = {
        split_of(name, episode, SplitConfig(val=val, test=0.2)) == "test" for val in (first, second)
    }
    assert len(held) == 1


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.1), (0.3, 0.05), (0.0, 0.25)])
def test_shares_converge(val: float, test: float) -> None:
    cfg = SplitConfig(val=val, test=test)
    found = [split_of("game", episode, cfg) for episode in range(20_000)]
    # Five standard deviations of a binomial share at n = 20,000 and p = 0.3 are 0.016.
    assert found.count("val") / len(found) == pytest.approx(val, abs=0.016)
    assert found.count("test") / len(found) == pytest.approx(test, abs=0.016)


def test_known_assignments_do_not_change_between_versions() -> None:
    cfg = SplitConfig()
    found = [split_of("my_way_home", episode, cfg)[0:2] for episode in range(24)]
    assert found == KNOWN.split()


def test_empty_splits_are_named_only_if_asked_for() -> None:
    assert empty_splits(["train"], SplitConfig()) == ["val", "test"]
    assert empty_splits(["train"], SplitConfig(val=0.0, test=0.0)) == []
    assert empty_splits([], SplitConfig(val=0.0)) == ["train", "test"]


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"val 0\.5"):
        check_split(SplitConfig(val=0.5, test=0.5))
