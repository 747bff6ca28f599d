"""Sizes of images as shown, from the headers of their files."""

from pathlib import Path, PurePosixPath

from PIL import ExifTags, Image

SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Sizes:
    """Looks images up in a folder."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._by_stem: dict[str, list[str]] | None = None

    def __call__(self, file: str) -> tuple[int, int]:
        """Width and height, EXIF orientation applied; no pixels are decoded.

        Raises: ValueError if there is no folder, or no readable image of that name in it.
        """
        if self.folder is None:
            raise ValueError(f"the size of {file} is not stated: name the folder of the images, with --images")
        try:
            with Image.open(self.folder / file) as image:
                sideways = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
                return image.size[::-1] if sideways else image.size
        except FileNotFoundError:
            raise ValueError(f"{file} is not in {self.folder}, the folder of the images") from None
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"the size of {file} cannot be read in {self.folder}: {error}") from None

    def named(self, stem: str) -> str:
        """The one image called `stem` but for its suffix, as path below the folder.

        Raises: ValueError if there is no folder, no such image, or several.
        """
        if self.folder is None:
            raise ValueError(f"which image {stem} belongs to is not stated: name their folder, with --images")
        if self._by_stem is None:
            self._by_stem = {}
            known = Image.registered_extensions()
            for path in sorted(self.folder.rglob("*")):
                if path.suffix.lower() in known:
                    name = path.relative_to(self.folder).as_posix()
                    self._by_stem.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)
        found = self._by_stem.get(stem, [])
        if len(found) != 1:
            raise ValueError(f"{stem} must be one image in {self.folder}, found {found or 'none'}")
        return found[0]
