"""The line that evaluate prints where policies are equal."""

from pipeline.stages.evaluate import show_tie


def test_policies_with_the_same_best_figure_are_named(capsys):
    def row(policy, accuracy):
        return {"policy": policy, "heldout_accuracy": accuracy, "heldout_reward": 0.0}

    show_tie([row("base", 0.0), row("sft", 0.5), row("grpo", 0.5)])
    assert capsys.readouterr().out == "  best_policy: grpo, the last of equals: sft, grpo\n"
    show_tie([row("base", 0.0), row("sft", 0.5)])
    assert not capsys.readouterr().out
