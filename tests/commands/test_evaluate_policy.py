"""``ivideogpt evaluate-policy``: from a name to a table, videos and one line of JSON."""

import pytest

pytest.importorskip("gymnasium")

OPTIONS = ("--environment-options", '{"size": 16, "steps": 5}', "--workers", 0, "--out", "results")


def test_random_actions_are_measured_and_the_same_command_goes_on(run, tmp_path) -> None:
    done = run("evaluate-policy", "reacher", "--policy", "random", "--trials", 3, "--videos", 1, *OPTIONS)
    assert done.code == 0, done.err
    assert done.json["trials"] == 3 and done.json["interval"][0] <= done.json["success"] <= done.json["interval"][1]
    assert len(list((tmp_path / "results" / "trials").iterdir())) == 3
    assert [path.suffix for path in (tmp_path / "results" / "videos").iterdir()] == [".mp4"]
    more = run("evaluate-policy", "reacher", "--policy", "random", "--trials", 5, *OPTIONS)
    assert more.json["trials"] == 5
    other = run("evaluate-policy", "reacher", "--policy", "reacher-script", "--trials", 5, *OPTIONS)
    assert other.code == 2 and "holds results of another evaluation; give another folder with --out" in other.err


def test_a_script_succeeds_where_random_actions_do_not(run) -> None:
    options = ("--environment-options", '{"size": 16}', "--workers", 0, "--videos", 0, "--trials", 5)
    script = run("evaluate-policy", "reacher", "--policy", "reacher-script", *options)
    assert script.code == 0, script.err
    assert script.json["success"] == 1.0


def test_an_agent_of_a_run_is_a_policy(run, tmp_path) -> None:
    pytest.importorskip("pyarrow", reason="stores need pyarrow: pip install 'ivideogpt[data]'")
    trained = run("mbrl", "debug", "--no-imagination", "--run", "agent")
    assert trained.code == 0, trained.err
    # The size of the pictures is that of the run's environment.
    words = ("evaluate-policy", "reacher", "--policy", "agent", "--workers", 0, "--out", "results", "--trials")
    done = run(*words, 2)
    assert done.code == 0, done.err
    assert done.json["trials"] == 2 and done.json["policy"] == "agent"
    other_size = run(*words[:-3], "--image-size", 32, "--trials", 1)
    assert other_size.code == 2 and "does not fit actions of 2 numbers and pictures of 32 pixels" in other_size.err

    # An agent that has learned on is another policy.
    newest = max((tmp_path / "agent" / "checkpoints").iterdir())
    newest.rename(newest.with_name("step-99999999"))
    later = run(*words, 3)
    assert later.code == 2 and "holds results of another evaluation; give another folder with --out" in later.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "name one environment, such as --suite libero_spatial or maniskill/pick_cube"),
        ("reacher --policy magic", "there is no policy 'magic'; expected one of metaworld-script, pusht-drag, random"),
        ("reacher --policy random --trials 0", "trials is 0 and videos is 2; expected at least 1 and 0"),
        ("reacher --policy replay", "demos/reacher is no episode store; give demonstrations of reacher"),
        ("reacher --policy random --demos d", "demos is for the policy replay, and the policy is 'random'"),
        ("reacher --environment-options 3", "environment_options is '3'; expected JSON"),
        ("--suite libero_space", "there is no environment 'libero_space'; did you mean 'libero_spatial'"),
    ],
)
def test_what_cannot_be_is_one_sentence(run, words, sentence) -> None:
    done = run("evaluate-policy", *words.split())
    assert done.code == 2 and sentence in done.err and done.err.count("\n") == 1
