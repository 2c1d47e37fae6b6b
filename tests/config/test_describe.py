def test_the_meaning_of_rewards_names_every_kind_of_part() -> None:
    from pipeline.config.load import Config
    from rewards.compose import KINDS

    said = describe.meanings(Config)["rewards"]
    assert [kind for kind in KINDS if f" {kind}" not in said] == []
