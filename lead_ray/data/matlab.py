"""MATLAB's own files, which some data sets come with. SciPy reads them, where it is installed."""

from pathlib import Path


def read(path: Path, *names: str) -> list:
    """The variables `names` of a MATLAB file: arrays, dicts for structures, lists or arrays of them for cells.

    Raises: ValueError if SciPy is missing, the file cannot be read or lacks one of them.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ValueError(f"{path} is a MATLAB file: install scipy, which reads it") from None
    try:
        content = loadmat(path, simplify_cells=True)
    except Exception as error:  # whatever a broken file makes it raise
        raise ValueError(f"{path} cannot be read as a MATLAB file: {error}") from error
    if missing := [name for name in names if name not in content]:
        raise ValueError(f"{path} holds no {', '.join(missing)}")
    return [content[name] for name in names]
