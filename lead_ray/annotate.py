"""A page in the browser on which a person clicks the landmarks of a few images that the program chooses.

$ lead-ray annotate --images photos --model runs/stage2-lead-0123abcd
$ lead-ray annotate --images photos                                      # without proposals, before there is a model

The points of the category are named on the page. Every click is on the disk before the page calls it saved. Labels and
everything else are kept in the project's folder; the same command goes on where it was left.
"""

import socket
import webbrowser
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aiohttp import web

from lead_ray.annotating.curve import Curve
from lead_ray.annotating.desk import Desk
from lead_ray.annotating.embeddings import Embeddings
from lead_ray.annotating.engine import Engine
from lead_ray.annotating.hub import Hub
from lead_ray.annotating.offers import Offers
from lead_ray.annotating.project import Project, held
from lead_ray.annotating.server import application
from lead_ray.errors import for_people
from lead_ray.landmarks.framing import Framing
from lead_ray.usage import parsed

PORTS = range(7878, 7898)


@dataclass(frozen=True, kw_only=True)
class Annotate:
    """What is annotated, with whose help."""

    images: Path
    """Folder that is searched with everything below it for jpg, jpeg, png, webp, bmp, tif and tiff files."""
    model: Path | None = None
    """A finished run's folder, or a file of encoder weights, that proposes points; if not given, what the project was
    last opened with."""
    side: int | None = None
    """Side in pixels of what the network is shown; if not given, what the project was last opened with, or with another
    model what that was trained for. 128 or 160 tell finer, and take longer; give `lead-ray fit` the same."""
    project: Path | None = None
    """Folder that receives the labels; if not given, landmarks-NAME here, with NAME that of the folder of images."""
    port: int | None = None
    """Of 127.0.0.1; if not given, the first that is free from 7878 on."""
    browser: bool = False
    """Open the page in this machine's browser."""

    def __post_init__(self):
        if self.side is not None:
            Framing(side=self.side)  # refuses what is too small or large
        if self.port is not None and not 0 <= self.port <= 65535:
            raise ValueError(f"port must be 0 to 65535, got {self.port}")

    @property
    def folder(self) -> Path:
        return self.project or Path(f"landmarks-{self.images.resolve().name}")


def serve(settings: Annotate) -> None:
    """Serve the page until Ctrl-C.

    Raises: FileNotFoundError, ValueError as Project(), or if the model is none; OSError if the port is taken.
    """
    with held(settings.folder), _listening(settings.port) as listening, ExitStack() as ending:
        model = None if settings.model is None else str(_there(settings.model).resolve())
        project = Project(settings.folder, settings.images, model=model, side=settings.side)
        ending.callback(project.close)
        hub, embeddings = Hub(), Embeddings()
        offers, curve = Offers(project, embeddings), Curve(settings.folder / "curve.json")
        engine = None
        if project.model:
            load = partial(_load, _there(Path(project.model)), project.side, embeddings, settings.folder / "features")
            engine = Engine(project, load, embeddings, offers, curve, hub.publish)
        secret = project.secret()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/{secret}/"
        print(f"{len(project.pictures.names):,} images in {settings.images}, labels go to {settings.folder}\n")
        print(
            f"  {address}\n\nOpen it in a browser of this machine. Every click is saved at once; Ctrl-C ends.",
            flush=True,
        )
        if settings.browser:
            webbrowser.open(address)
        app = application(Desk(project, offers, curve, hub, engine), hub, secret)
        if engine is not None:
            engine.start()
            ending.callback(engine.join, timeout=10)
            ending.callback(engine.stop)
        web.run_app(app, sock=listening, print=None, access_log=None, shutdown_timeout=1.0)


def _there(model: Path) -> Path:
    """The model itself. Raises: FileNotFoundError; what else may be wrong with it is said on the page."""
    if not (model / "encoder.safetensors" if model.is_dir() else model).exists():
        raise FileNotFoundError(f"no weights at {model}: give a finished run's folder or a .safetensors file")
    return model


def _load(model: Path, side: int | None, embeddings: Embeddings, features: Path):
    """Open the model, and what it said before; imports torch, which takes seconds, so the page does not wait for it."""
    from lead_ray.landmarks.proposer import Proposer
    from lead_ray.models import weights

    proposer = Proposer(model, framing=None if side is None else Framing(side=side))
    embeddings.open(features / (weights.fingerprint(model)[:8] + ("" if side is None else f"-{side}")))
    return proposer


def _listening(port: int | None) -> socket.socket:
    """A socket on loopback. Raises: OSError if the port, or every one of PORTS, is taken."""
    for candidate in PORTS if port is None else [port]:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", candidate))
            listening.listen()
        except OSError as error:
            listening.close()
            refused = error
            continue
        return listening
    raise OSError(f"port {candidate} of 127.0.0.1 cannot be had ({refused.strerror}): name another with --port")


def main(arguments: list[str] | None = None) -> None:
    with for_people("annotate"):
        serve(parsed(Annotate, arguments, __doc__, "lead-ray annotate"))


if __name__ == "__main__":
    main()
