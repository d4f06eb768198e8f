from __future__ import annotations

import pytest
import torch
from torch import nn

from iwm.errors import ConfigError
from iwm.training.config import OptimConfig
from iwm.training.distributed import Ranks, choose_device
from iwm.training.optim import learning_rate, make_optimizer


def test_the_rate_warms_up_and_falls_to_its_end() -> None:
    config = OptimConfig(lr=1.0, final_lr=0.1, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_vectors_and_tokens_do_not_decay_and_frozen_parameters_are_left_out() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2, 2))
    model.bias = nn.Parameter(torch.ones(2))
    model.mask_token = nn.Parameter(torch.ones(1, 1, 2))
    model.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    decayed, plain = make_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert [p is model.weight for p in decayed["params"]] == [True]
    assert decayed["weight_decay"] == 0.3
    assert len(plain["params"]) == 2
    assert plain["weight_decay"] == 0.0


def test_a_device_that_is_not_there_is_an_error_not_a_fall_back() -> None:
    with pytest.raises(ConfigError, match=r"train\.device 'cuda:99': not available"):
        choose_device("cuda:99")
    assert choose_device("cpu").type == "cpu"


def test_means_over_one_rank() -> None:
    ranks = Ranks(0, 1, torch.device("cpu"))
    assert ranks.mean({"a": torch.tensor(2.0)}) == {"a": 2.0}
    assert ranks.mean({}) == {}
