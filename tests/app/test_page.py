"""The served page: offline, labelled, bounded, and silent about what happens inside."""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from dmkit import zoo
from dmkit.app.neighbours import Card, cards

pytest.importorskip("gradio", reason="the demo needs the extra app")

SAMPLE = ["tiny", "", "", "ddim", "ts-ddim", 4, 3.0, 2, 0, "auto", "auto"]


@pytest.fixture(scope="module")
def server(unconditional, adapters, tmp_path_factory):
    """The demo with a tiny model, on a free port."""
    from dmkit.app import launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")
        demo = launch(
            models=unconditional.root,
            adapters=adapters,
            runs=tmp_path_factory.mktemp("runs") / "app",
            device="cpu",
            block=False,
        )
        yield demo
        demo.close()


@pytest.fixture(scope="module")
def client(server):
    from gradio_client import Client

    return Client(server.local_url, verbose=False)


def get(server, path: str) -> str:
    with urllib.request.urlopen(server.local_url.rstrip("/") + path, timeout=20) as answer:
        return answer.read().decode("utf-8", errors="replace")


def test_the_page_loads_nothing_from_elsewhere(server):
    """Scripts, styles, fonts and pictures of the page, its theme and its own styles."""
    page = get(server, "/")
    fetched = re.findall(r"<(?:script|img|iframe|source)[^>]*\bsrc=[\"']([^\"']+)", page)
    fetched += re.findall(r"<link[^>]*\bhref=[\"']([^\"']+)", page)
    styles = [get(server, "/theme.css")]
    for path in fetched:
        assert not re.match(r"(https?:)?//", path), path
        if path.endswith(".css"):
            styles.append(get(server, "/" + path.lstrip("./")))
    config = json.loads(get(server, "/config"))
    styles.append(config.get("css") or "")
    for style in styles:
        assert "@import" not in style.replace("@import url('static", "")
        assert not re.findall(r"url\(\s*[\"']?(?:https?:)?//[^)]*", style)
    assert not [sheet for sheet in config.get("stylesheets") or [] if sheet and "//" in sheet]
    assert config["analytics_enabled"] is False


def test_what_a_visitor_can_use_has_a_label(server):
    asked = {
        "textbox",
        "dropdown",
        "slider",
        "number",
        "checkbox",
        "radio",
        "image",
        "file",
        "gallery",
        "code",
    }
    asked |= {"imageslider", "lineplot", "barplot", "dataframe", "json"}
    for component in server.config["components"]:
        if component["type"] in asked and component["props"].get("visible") is not False:
            assert component["props"].get("label"), component


def test_tabs(server):
    names = [c["props"]["label"] for c in server.config["components"] if c["type"] == "tabitem"]
    assert names == ["Sample", "Invert & edit", "Erase", "One step", "Train", *["Neighbours"] * bool(cards())]


def test_a_sample_comes_with_parameters_and_code(client):
    slider, _, pictures, files, parameters, code = client.predict(*SAMPLE, api_name="/sample")
    assert [p["caption"] for p in pictures] == ["ddim", "ts-ddim"]
    assert len(files) == 4
    with Image.open(files[0]) as file:
        assert json.loads(file.text["parameters"])["model"] == "tiny"
    assert parameters["samplers"] == ["ddim", "ts-ddim"]
    assert "generate(pipe, scheduler, 4, range(0, 2))" in code
    assert slider


def test_an_uploaded_picture_is_inverted(client, tmp_path):
    from gradio_client import handle_file

    name = zoo.examples("fashion")[0]
    table, pictures, *_ = client.predict(handle_file(name), "tiny", "", 4, api_name="/invert")
    assert [row[0] for row in table["data"]] == ["ddim", "bdia"]
    assert [p["caption"] for p in pictures] == ["original", "ddim", "bdia"]


def answer(client, *values, api_name):
    """The message of a refused request."""
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as raised:
        client.predict(*values, api_name=api_name)
    message = str(raised.value)
    assert "Traceback" not in message
    assert "site-packages" not in message
    assert "dmkit-app-" not in message
    return message


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, "../../etc", None),
        (0, "hub/model", None),
        (3, "ddimm", None),
        (5, 10**12, None),
        (5, "many", None),
        (5, None, None),
        (5, {"a": 1}, None),
        (7, 0, None),
        (8, -1, None),
        (8, None, "The seed must be a whole number"),
        (9, "wide", "The window must be auto or a number"),
        (9, "<img src=x onerror=alert(1)>", "&lt;img"),
    ],
)
def test_bad_values_are_answered_in_one_line(client, index, value, message):
    values = [*SAMPLE]
    values[index] = value
    said = answer(client, *values, api_name="/sample")
    assert message is None or message in said


@pytest.mark.parametrize("name", ["picture.png", "picture.svg"])
def test_a_bad_upload_is_answered_in_one_line(client, tmp_path, name):
    from gradio_client import handle_file

    (tmp_path / name).write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    said = answer(client, handle_file(tmp_path / name), "tiny", "", 4, api_name="/invert")
    assert "not a picture that can be read" in said


def ask(server, api_name: str, values: list) -> str:
    """The answer to a request as it is, which a client of Gradio's would upload files for."""
    url = f"{server.local_url.rstrip('/')}/gradio_api/call{api_name}"
    body = json.dumps({"data": values}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as reply:
        event = json.load(reply)["event_id"]
    return get(server, f"/gradio_api/call{api_name}/{event}")


@pytest.mark.parametrize(
    "where", ["/etc/passwd", "{here}", "{root}/../{here}", "../{here}", "http://localhost/a"]
)
def test_no_file_of_the_server_is_read_or_served(server, where):
    path = where.format(here=Path(__file__).resolve(), root=zoo.path("emoji"))
    with pytest.raises(urllib.error.HTTPError) as raised:
        get(server, f"/gradio_api/file={path}")
    assert raised.value.code in (400, 403, 404)
    payload = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for api_name, values in (
        ("/invert", [payload, "tiny", "", 4]),
        ("/erase", [[], [payload], 1, 1, 1, 1, "emoji", True, "a heart", "", 1, 3.0, 1, 0]),
    ):
        said = ask(server, api_name, values)
        assert "event: error" in said
        assert "event: complete" not in said
        assert "root:" not in said
        assert "Traceback" not in said


def test_an_adapter_can_be_uploaded_and_a_foreign_file_is_refused(client, adapters, tmp_path):
    from gradio_client import handle_file

    rest = [1.0, 1.0, 1.0, 1.0, "emoji", True, "a heart", "a pizza", 1, 3.0, 1, 0]
    good = handle_file(adapters / "heart" / "heart.safetensors")
    _, pictures, *_ = client.predict([], [good], *rest, api_name="/erase")
    assert [p["caption"] for p in pictures] == [
        *("a heart, before", "a heart, after"),
        *("a pizza, before", "a pizza, after"),
    ]
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04K\x01.")
    said = answer(client, [], [handle_file(tmp_path / "bad.safetensors")], *rest, api_name="/erase")
    assert "pickled" in said


def test_files_are_gone_after_closing(unconditional, tmp_path):
    from dmkit.app.outcome import Shelf
    from dmkit.app.page import build
    from dmkit.app.page.parts import Desk
    from dmkit.app.train import Trainings

    desk = Desk(unconditional, Trainings(tmp_path / "runs"), shelf=Shelf())
    card = Card("graphs/method", "What it does.", "print(1)\n", "| a |\n| --- |\n| 1 |\n", None)
    demo = build(desk, [card])
    assert "Neighbours" in [c["props"].get("label") for c in demo.config["components"]]
    desk.close()
    assert not desk.shelf.root.exists()
    assert not (tmp_path / "runs").exists()


def test_cards_of_auxiliary_methods(tmp_path, monkeypatch):
    from dmkit.app import neighbours
    from dmkit.auxiliary import Method

    docs = tmp_path / "docs"
    for folder in (docs / "methods", docs / "results"):
        folder.mkdir(parents=True)
    method, what = Method("forward", "graphs", "Learns", "Park, *FF*, 2024"), "Learns: Park, *FF*, 2024."
    monkeypatch.setattr(neighbours, "methods", lambda: [method])
    assert cards(docs) == [Card("graphs/forward", what)]
    (docs / "methods" / "forward.md").write_text("# F\n\n```python\nprint(1)\n```\n")
    (docs / "results" / "forward.md").write_text("| a |\n| --- |\n![plot](forward.png)\n")
    (docs / "results" / "forward.png").write_bytes(b"")
    picture = docs / "results" / "forward.png"
    assert cards(docs) == [Card("graphs/forward", what, "print(1)\n", "| a |\n| --- |\n", picture)]


def test_launching_says_what_is_missing(monkeypatch, tmp_path):
    from dmkit.app import launch
    from dmkit.errors import MissingExtraError

    with pytest.raises(ValueError, match="does not exist"):
        launch(models=tmp_path / "none")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dmkit\[app\]'"):
        launch()
