"""`HorovodRanks` without Horovod; two of them under horovodrun are in tests/distributed/test_finetune.py."""

from __future__ import annotations

import sys

import pytest

import multitrainer
from multitrainer_cli.errors import UserError
from multitrainer_cli.ranks.horovod_ranks import HorovodRanks


def test_without_horovod_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod", None)
    monkeypatch.setitem(sys.modules, "horovod.mxnet", None)
    monkeypatch.delitem(sys.modules, "multitrainer.horovod", raising=False)
    monkeypatch.delattr(multitrainer, "horovod", raising=False)
    with pytest.raises(UserError, match=r"(?s)--kvstore horovod: .*pip install .*multitrainer\[horovod\]"):
        HorovodRanks()
