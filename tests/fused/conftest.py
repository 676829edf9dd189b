import mxnet as mx
import pytest

from multitrainer.fused import update


@pytest.fixture(autouse=True)
def work_is_split(monkeypatch):
    """Let several threads share even a small update."""
    monkeypatch.setattr(update, "SINGLE_THREAD_VALUES", 1000)
    monkeypatch.delenv(update.ENVIRONMENT_SWITCH, raising=False)


@pytest.fixture
def stock_updates(monkeypatch):
    """A list to which each call of stock's Updater adds one item."""
    calls = []
    stock = mx.optimizer.Updater.__call__

    def recorded(self, *args):
        calls.append(self)
        stock(self, *args)

    monkeypatch.setattr(mx.optimizer.Updater, "__call__", recorded)
    return calls
