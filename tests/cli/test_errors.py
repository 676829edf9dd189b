from __future__ import annotations

import pytest

from multitrainer_cli.errors import UserError, naming, report_error, require


def test_an_error_of_the_user_is_one_line(capsys):
    assert report_error(UserError("--lr 0:\n  expected a number\tabove 0")) == 2
    assert capsys.readouterr().err == "multitrainer: error: --lr 0: expected a number above 0\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.params"), "a.params: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("no reason"), "no reason"),
    ],
)
def test_an_error_of_the_system_names_the_file_if_there_is_one(error, message, capsys):
    assert report_error(error, "rank 1: ") == 2
    assert capsys.readouterr().err == f"multitrainer: error: rank 1: {message}\n"


def test_ctrl_c_has_the_status_that_a_shell_gives_it(capsys):
    assert report_error(KeyboardInterrupt(), "rank 1: ") == 130
    assert capsys.readouterr().err == "multitrainer: rank 1: interrupted\n"


def test_an_unexpected_error_keeps_its_traceback(capsys):
    def fail():
        raise KeyError("unexpected")

    with pytest.raises(KeyError) as caught:
        fail()
    assert report_error(caught.value) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "in fail" in printed
    assert "KeyError: 'unexpected'" in printed


def test_a_module_that_is_missing_names_the_extra():
    assert require("json.decoder").__name__ == "json.decoder"
    with pytest.raises(UserError, match=r"no_such_module cannot be imported .* pip install 'multitrainer\[finetune\]'"):
        require("no_such_module.part")


@pytest.mark.parametrize("kind", [ValueError, TypeError, UserError])
def test_an_error_about_an_option_begins_with_it(kind):
    with pytest.raises(UserError, match=r"^--lr 3: too high$"), naming("--lr 3"):
        raise kind("too high")


def test_other_errors_are_not_about_an_option():
    with pytest.raises(KeyError), naming("--lr 3"):
        raise KeyError("x")
