"""Random programs on random networks give the same results as the reference.

`pytest tests/oracle --oracle-seed N` runs the program of one seed; `--long N` runs N programs, from
`--oracle-first M` on, in as many processes as `-n` says, and the last line says how many differed.
"""

import networks
import pytest
from generating import generate
from programs import Program
from regressions import REGRESSIONS
from running import difference
from shortening import shorten

from multitrainer import MultiLRTrainer

CHUNK = 50
SHOWN = 3  # programs of a chunk that are shortened, which takes a while


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


@pytest.mark.timeout(3600)  # for a chunk with programs to shorten
def test_trainer_does_what_the_reference_does(seeds, record_property):
    found = {}
    for seed in seeds:
        different = difference(generate(seed))
        if different is not None:
            found[seed] = different
    record_property("programs", len(seeds))
    record_property("differences", len(found))
    report = [f"seed {seed}: {different}" for seed, different in found.items()]
    for seed, different in list(found.items())[:SHOWN]:
        report += ["", *listing(seed, different)]
    assert not found, "\n".join(report)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_a_program_that_differed_once_does_not_differ(name):
    different = difference(REGRESSIONS[name])
    assert different is None, f"{different}\n{REGRESSIONS[name]}"


def test_programs_that_differed_once_name_existing_layers():
    for program in REGRESSIONS.values():
        names = set(networks.names(program.stages, program.heads))
        for op in program.ops:
            with_target = op[0] in ("freeze", "unfreeze", "attach", "grad_req")
            targets = op[3] if op[0] == "set" else op[1:2] if with_target else ()
            assert set(targets) <= names, op


def listing(seed, different):
    """Return lines that show one program, shortened if the short one still differs."""
    program = generate(seed)
    short = shorten(program, different.kind)
    again = difference(short)
    if again is None:  # not every time
        short, again = program, different
    return [f"seed {seed}, shortened: {again}", str(short)]


def test_a_program_prints_as_its_own_literal():
    for seed in range(100):
        program = generate(seed)
        assert eval(str(program), {"Program": Program}) == program


class Faulty(MultiLRTrainer):
    """Makes every third update twice as large, which the oracle must find."""

    def step(self, batch_size, ignore_stale_grad=False):
        self.calls = getattr(self, "calls", 0) + 1
        super().step(batch_size / 2 if self.calls % 3 == 0 else batch_size, ignore_stale_grad)


def test_a_wrong_trainer_is_found_and_its_program_shortened():
    program = Program(
        stages=((0, "dense"), (1, "batchnorm")),
        mode={},
        ops=tuple(op for seed in range(5) for op in (("predict", seed), ("backward", seed, True), ("step", 0))),
    )
    assert difference(program) is None
    found = difference(program, Faulty)
    assert found.kind == "weight"
    short = shorten(program, found.kind, subject=Faulty)
    assert short.stages == ()
    assert short.mode is None
    assert [op[0] for op in short.ops] == ["step"] * 3
