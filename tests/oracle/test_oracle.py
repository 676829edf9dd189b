"""Random programmes on random networks come to what the reference comes to.

`pytest tests/oracle --oracle-seed N` runs the programme of one seed; `--long N` runs N programmes, from
`--oracle-first M` on, in as many processes as `-n` says, and the last line says how many differed.
"""

import networks
import programs
import pytest
from found import FOUND
from programs import Programme

CHUNK = 50
SHOWN = 3  # programmes of a chunk that are shortened, which takes a while


def pytest_generate_tests(metafunc):
    if "seeds" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    if option("oracle_seed") is not None:
        first, count = option("oracle_seed"), 1
    else:
        first, count = option("oracle_first"), option("long")
    last = first + count
    chunks = [range(start, min(start + CHUNK, last)) for start in range(first, last, CHUNK)]
    params = [
        pytest.param(chunk, id=f"{chunk[0]}-{chunk[-1]}", marks=[pytest.mark.slow] if i else [])
        for i, chunk in enumerate(chunks)
    ]
    metafunc.parametrize("seeds", params)


@pytest.mark.timeout(3600)  # of a chunk in which all has to be shortened
def test_trainer_does_what_the_reference_does(seeds, record_property):
    found = {}
    for seed in seeds:
        different = programs.difference(programs.generate(seed))
        if different is not None:
            found[seed] = different
    record_property("programmes", len(seeds))
    record_property("differences", len(found))
    report = [f"seed {seed}: {different}" for seed, different in found.items()]
    for seed, different in list(found.items())[:SHOWN]:
        report += ["", *listing(seed, different)]
    assert not found, "\n".join(report)


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_before(name):
    different = programs.difference(FOUND[name])
    assert different is None, f"{different}\n{FOUND[name]}"


def test_what_was_found_names_layers_that_are_there():
    for programme in FOUND.values():
        names = set(networks.names(programme.stages, programme.heads))
        for op in programme.ops:
            targets = (
                op[3] if op[0] == "set" else op[1:2] if op[0] in ("freeze", "unfreeze", "attach", "grad_req") else ()
            )
            assert set(targets) <= set(names), op


def listing(seed, different):
    """Return the lines that show one programme, shortened if what is left of it still differs."""
    programme = programs.generate(seed)
    short = programs.shorten(programme, different.kind)
    again = programs.difference(short)
    if again is None:  # not every time
        short, again = programme, different
    return [f"seed {seed}, shortened: {again}", str(short)]


def test_a_programme_prints_as_what_it_is():
    for seed in range(100):
        programme = programs.generate(seed)
        assert eval(str(programme), {"Programme": Programme}) == programme


class Forgetful(programs.MultiLRTrainer):
    """Has one fault that the oracle must find: each third update is made twice as large."""

    def step(self, batch_size, ignore_stale_grad=False):
        self.calls = getattr(self, "calls", 0) + 1
        super().step(batch_size / 2 if self.calls % 3 == 0 else batch_size, ignore_stale_grad)


def test_a_wrong_trainer_is_found_and_its_programme_shortened():
    programme = Programme(
        stages=((0, "dense"), (1, "batchnorm")),
        mode={},
        ops=tuple(op for seed in range(5) for op in (("predict", seed), ("backward", seed, True), ("step", 0))),
    )
    assert programs.difference(programme) is None
    found = programs.difference(programme, Forgetful)
    assert found.kind == "weight"
    short = programs.shorten(programme, found.kind, subject=Forgetful)
    assert short.stages == ()
    assert short.mode is None
    assert [op[0] for op in short.ops] == ["step"] * 3
