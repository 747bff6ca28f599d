"""The server of lead-ray annotate: what the page is told, and who is not told anything."""

import asyncio
import json
import subprocess
import sys
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from PIL import Image

import lead_ray
from lead_ray import annotate
from lead_ray.annotate import Annotate, serve
from lead_ray.annotating import pictures
from lead_ray.annotating.curve import Curve
from lead_ray.annotating.desk import Desk
from lead_ray.annotating.embeddings import Embeddings
from lead_ray.annotating.folder import key
from lead_ray.annotating.hub import Hub
from lead_ray.annotating.offers import Offers
from lead_ray.annotating.project import Project
from lead_ray.annotating.server import application

SCHEMA = {"points": [{"id": -1, "name": "eye", "colour": "#ff0000"}, {"id": -2, "name": "nose", "colour": "#00ff00"}]}


@pytest.fixture
def project(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a b.png", "new\nline.png", "ü.png"):
        Image.new("RGB", (20, 10), (200, 30, 30)).save(images / name)
    turned = Image.new("RGB", (20, 10))
    turned.putpixel((0, 0), (255, 255, 255))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    turned.save(images / "turned.jpg", exif=exif)
    Image.new("I;16", (20, 10), 40000).save(images / "x-ray.tif")
    (images / "broken.jpg").write_bytes((images / "turned.jpg").read_bytes()[:300])
    (tmp_path / "secret.png").write_bytes(b"private")
    with closing(Project(tmp_path / "project", images)) as project:
        yield project


@asynccontextmanager
async def served(project):
    """A running server; gives its address and a client without manners of its own."""
    hub = Hub()
    embeddings = Embeddings(project.path / "features")
    offers = Offers(project, embeddings)
    desk = Desk(project, offers, Curve(project.path / "curve.json"), hub)
    runner = web.AppRunner(application(desk, hub, project.secret()), shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host = f"127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    async with ClientSession() as client:
        yield f"http://{host}/{project.secret()}", client
    await runner.cleanup()


def talk(project, conversation):
    async def run():
        async with served(project) as (base, client):
            return await conversation(base, client)

    return asyncio.run(run())


def refused(project, path="/api/state", *, method="GET", secret=None, **request):
    async def conversation(base, client):
        address = base if secret is None else base.rpartition("/")[0] + "/" + secret
        async with client.request(method, address + path, **request) as answer:
            return answer.status, (await answer.json())["error"]

    return talk(project, conversation)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"secret": "x" * 32}, "not the address"),
        ({"secret": ""}, "not the address"),
        ({"headers": {"Host": "evil.example"}}, "this machine only"),
        ({"headers": {"Host": "127.0.0.1.evil.example:80"}}, "this machine only"),
        ({"headers": {"Origin": "http://evil.example"}}, "own page only"),
        ({"headers": {"Origin": "null"}}, "own page only"),
        ({"headers": {"Origin": "http://127.0.0.1:1"}}, "own page only"),
        ({"method": "POST", "path": "/api/skip", "data": b"{}", "headers": {"Content-Type": "text/plain"}}, "json"),
    ],
)
def test_requests_that_are_not_the_pages_are_refused(project, request_, reason):
    status, error = refused(project, **request_)
    assert status == 403 and reason in error


@pytest.mark.parametrize(
    "path",
    [
        "/picture/..%2f..%2fsecret.png",
        "/picture/%2e%2e%2fsecret.png",
        "/thumbnail/..%5csecret.png",
        "/api/images/a%20b.png",
        "/page/..%2fserver.py",
        "/page/server.py",
        "/page/%2fetc%2fpasswd",
    ],
)
def test_no_path_leads_out_of_the_folder(project, path):
    async def conversation(base, client):
        from yarl import URL

        async with client.get(URL(base + path, encoded=True)) as answer:
            return answer.status, await answer.text()

    status, text = talk(project, conversation)
    assert status == 404 and "private" not in text and "root:" not in text


def test_answers_cannot_be_framed_sniffed_or_cached(project):
    async def conversation(base, client):
        async with client.get(base + "/") as page, client.get(base + "/page/main.js") as script:
            return page.headers, script.content_type, await page.text()

    headers, kind, text = talk(project, conversation)
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
    assert kind == "text/javascript" and "http" not in text.replace("http-equiv", "")  # nothing from elsewhere


def test_a_conversation(project):
    """Schema, a click, a list, an export, and what another tab hears of it."""

    async def conversation(base, client):
        async def post(path, **content):
            async with client.post(base + path, json=content) as answer:
                return answer.status, await answer.json()

        async def get(path):
            async with client.get(base + path) as answer:
                return answer.status, await answer.json()

        events = await client.get(base + "/events")

        async def event():
            line = await events.content.readuntil(b"\n\n")
            return json.loads(line.removeprefix(b"data: "))

        assert await event() == {"kind": "hello", "revision": 0}
        assert (await post("/api/schema", schema=SCHEMA, base=0))[1] == {"revision": 1}
        assert (await post("/api/schema", schema=SCHEMA, base=0))[0] == 409
        assert (await event())["kind"] == "schema"
        image = key("new\nline.png")
        point = {"id": 1, "mark": 2, "x": 3.5, "y": 4}
        assert (await post("/api/points", image=image, points=[point], request="12345678"))[1] == {"revision": 2}
        heard = await event()
        assert heard["image"] == image and heard["points"][0]["x"] == 3.5 and heard["counts"]["begun"] == 1
        status, shown = await get(f"/api/images/{image}")
        assert shown["points"] == {"1": {"mark": 2, "x": 3.5, "y": 4.0, "revision": 2}} and shown["size"] == [20, 10]
        assert shown["box"] is None and shown["boxRevision"] == 0
        assert (await post("/api/box", image=image, box=[2, 1, 12, 9]))[1] == {"revision": 3}
        heard = await event()
        assert heard["kind"] == "box" and heard["image"] == image and heard["box"] == [2, 1, 12, 9]
        status, shown = await get(f"/api/images/{image}")
        assert shown["box"] == [2, 1, 12, 9] and shown["boxRevision"] == 3
        assert (await post("/api/box", image=image))[0] == 400
        begun = (await get("/api/images?which=begun"))[1]
        assert begun == {"total": 1, "rows": [{"key": image, "name": "new\nline.png", "kind": "begun"}]}
        assert (await get("/api/images?search=Ü.P"))[1]["total"] == 1
        assert (await get("/api/images?start=x"))[0] == 400
        status, wrong = await post("/api/points", image=image, points=[{**point, "x": 99}])
        assert status == 400 and "within the image" in wrong["error"]
        status, broken = await get(f"/api/images/{key('broken.jpg')}")
        assert status == 422 or broken["size"] == [10, 20]  # its header may be whole
        status, picture = await get(f"/picture/{key('broken.jpg')}")
        assert status == 422 and "cannot be read" in picture["error"]
        status, exported = await post("/api/export", format="own")
        assert status == 200 and exported["file"].endswith("labels.json")
        assert (await post("/api/export", format="docx"))[0] == 400
        events.close()

    talk(project, conversation)
    labels = json.loads((project.path / "exports" / "labels.json").read_text())
    assert [(image["file"], image["box"]) for image in labels["images"]] == [("new\nline.png", [2, 1, 12, 9])]


@pytest.mark.parametrize(
    ("name", "size", "kind"),
    [("a b.png", (20, 10), "image/png"), ("turned.jpg", (10, 20), "image/jpeg"), ("x-ray.tif", (20, 10), "image/jpeg")],
)
def test_pictures_are_shown_upright_at_their_true_size(project, tmp_path, name, size, kind):
    path = project.pictures.path(name)
    assert pictures.size(path) == size
    body, media = pictures.shown(path)
    (tmp_path / "shown").write_bytes(body)
    with Image.open(tmp_path / "shown") as image:
        assert image.size == size and media == kind
        assert image.getexif().get(0x0112, 1) == 1
    (tmp_path / "small").write_bytes(pictures.thumbnail(path))
    with Image.open(tmp_path / "small") as image:
        assert image.size == size


def test_the_secret_is_kept_for_open_tabs_and_from_other_people(project):
    assert project.secret() == project.secret() and len(project.secret()) >= 32
    assert (project.path / "address").stat().st_mode & 0o077 == 0


def test_many_names_are_paged(tmp_path, monkeypatch):
    names = tuple(f"{number:06d}.jpg" for number in range(20_000))
    monkeypatch.setattr("lead_ray.annotating.folder._walk", lambda folder, prefix: iter(names))
    (tmp_path / "images").mkdir()
    with closing(Project(tmp_path / "project", tmp_path / "images")) as project:
        offers = Offers(project, Embeddings(tmp_path / "features"))
        desk = Desk(project, offers, Curve(tmp_path / "curve.json"), Hub())
        page = desk.images(which="all", search="", start=19_990, count=10_000)
        assert page["total"] == 20_000 and [row["name"] for row in page["rows"]] == list(names[-10:])
        assert len(desk.images(which="todo", search="", start=0, count=10_000)["rows"]) == 500
        assert desk.next("folder", key(names[-1]))["image"] == key(names[0])


STARTING = """
import sys
from pathlib import Path
from lead_ray import annotate
annotate.Engine.start = lambda engine: sys.exit("torch" in sys.modules)
annotate.serve(annotate.Annotate(images=Path("images"), model=Path("weights"), project=Path("new"), port=0))
"""


def test_the_address_is_there_before_torch(project, tmp_path):
    (tmp_path / "weights").touch()
    command = [sys.executable, "-c", STARTING]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "http://127.0.0.1:" in told.stdout


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"model": "nowhere"}, "no weights at"), ({"images": "nowhere"}, "is not a folder"), ({"port": 1}, "port 1 of")],
)
def test_what_is_wrong_is_said_at_once_and_leaves_nothing(project, tmp_path, wrong, said, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    if "port" in wrong:
        monkeypatch.setattr(annotate.socket.socket, "bind", refuse)
    where = {"images": "images", "project": "some/new"} | wrong
    settings = Annotate(**{name: tmp_path / to if name != "port" else to for name, to in ({"port": 0} | where).items()})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=said):
        serve(settings)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_project_that_was_there_is_left_as_it_was(project, tmp_path):
    project.close()
    before = sorted((tmp_path / "project").rglob("*"))
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        serve(Annotate(images=tmp_path / "nowhere", project=tmp_path / "project", port=0))
    assert sorted(path for path in (tmp_path / "project").rglob("*") if path.name != ".lock") == before


def test_what_the_network_is_shown_is_kept_with_the_project(project, tmp_path):
    project.close()
    folders = tmp_path / "project", tmp_path / "images"
    for model, given, side in (
        (None, None, None),
        (None, 128, 128),
        ("a", None, 128),
        (None, None, 128),
        (None, 160, 160),
        ("a", None, 160),
        ("b", None, None),
    ):
        with closing(Project(*folders, model=model, side=given)) as opened:
            assert (opened.model, opened.side) == (model or opened.model, side)
    with pytest.raises(ValueError, match="side must be 32 to 1024 pixels, got 8"):
        Annotate(images=folders[1], side=8)
    model = Path(lead_ray.__file__).parent / "models" / "synthetic-faces.safetensors"
    folders = []
    for side, shown in ((None, 96), (64, 64), (128, 128)):
        embeddings = Embeddings()
        assert annotate._load(model, side, embeddings, tmp_path / "features").framing.side == shown
        folders.append(embeddings.folder)
    assert len(set(folders)) == 3, "vectors of one side would serve another"
