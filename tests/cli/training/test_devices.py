from __future__ import annotations

import mxnet as mx
import pytest

from multitrainer_cli.errors import UserError
from multitrainer_cli.training import devices


class TestContexts:
    def test_are_the_named_devices_in_their_order(self):
        assert devices.parse_contexts("cpu") == [mx.cpu()]
        assert devices.parse_contexts("cpu(1), cpu(0)") == [mx.cpu(1), mx.cpu(0)]

    @pytest.mark.skipif(mx.context.num_gpus() > 0, reason="the default is a GPU")
    def test_are_the_cpu_without_a_gpu(self):
        assert devices.parse_contexts(None, local_rank=3) == [mx.cpu()]

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("tpu", r"expected cpu, gpu\(0\) or gpu\(0\),gpu\(1\), not 'tpu'"),
            ("cpu,", "not ''"),
            ("cpu(x)", r"not 'cpu\(x\)'"),
            ("cpu,cpu(0)", "a device is named twice"),
            (f"gpu({mx.context.num_gpus()})", r"there is no gpu\(\d+\); use --ctx cpu"),
        ],
    )
    def test_that_do_not_exist_are_refused(self, text, error):
        with pytest.raises(UserError, match=error):
            devices.parse_contexts(text)


def test_the_threads_are_named_for_cpus_alone():
    threads = devices.count_threads([mx.cpu(0)])
    text = f" with {threads} thread" + "s" * (threads > 1)
    assert devices.describe_threads([mx.cpu(0)]) == text
    assert devices.describe_threads([mx.cpu(0), mx.cpu(1)]) == f"{text} each"
    assert (devices.count_threads([mx.gpu(0)]), devices.describe_threads([mx.gpu(0)])) == (None, "")
