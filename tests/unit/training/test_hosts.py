"""What hosts need to know to meet: addresses, interfaces, patience, torchrun's words."""

from __future__ import annotations

from datetime import timedelta

import pytest

from iwm.errors import ConfigError
from iwm.training import distributed
from pipelines import _torchrun


def test_the_way_to_this_machine_is_loopback_and_has_no_interface_for_gloo() -> None:
    assert distributed.address_towards("127.0.0.1") == "127.0.0.1"
    assert distributed.interface_of("127.0.0.1") is None
    assert distributed.interface_of("192.0.2.77") is None  # nobody's


def test_a_host_that_is_not_known_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"no-such-host\.invalid: cannot be reached"):
        distributed.address_towards("no-such-host.invalid")


def test_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(distributed.PATIENCE, raising=False)
    assert distributed._patience() == timedelta(minutes=10)
    monkeypatch.setenv(distributed.PATIENCE, "45")
    assert distributed._patience() == timedelta(seconds=45)
    for wrong in ("soon", "0", "-1"):
        monkeypatch.setenv(distributed.PATIENCE, wrong)
        with pytest.raises(ConfigError, match="IWM_PATIENCE_S"):
            distributed._patience()


def test_torchruns_words() -> None:
    alone = _torchrun.arguments("core", 2)
    assert alone == ["--standalone", "--nproc-per-node", "2", "-m", "pipelines.train", "core"]
    words = " ".join(_torchrun.arguments("core", 1, 2, "127.0.0.1:29600"))
    assert "--nnodes 2" in words
    assert "--rdzv-endpoint 127.0.0.1:29600" in words
    assert "is_host=1" in words
    assert "--local-addr 127.0.0.1" in words


def test_the_head() -> None:
    assert _torchrun.endpoint("node-1") == ("node-1", 29500)
    assert _torchrun.endpoint("10.0.0.1:29600") == ("10.0.0.1", 29600)
    for wrong in (":29500", "node:port", ""):
        with pytest.raises(ConfigError, match="--head"):
            _torchrun.endpoint(wrong)
