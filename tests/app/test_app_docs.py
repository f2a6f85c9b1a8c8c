from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "app.md"


def test_every_option_of_the_command_is_there():
    import typer

    from dmkit.cli import app

    options = [o for p in typer.main.get_command(app).commands["app"].params for o in p.opts]
    text = DOCS.read_text(encoding="utf-8")
    assert options
    assert not [option for option in options if option not in text]
