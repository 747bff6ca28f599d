"""What tests of evaluation share: a tiny trunk on disk, and prepared pictures with as many points as one likes."""

import json
from pathlib import Path

import layouts
import numpy as np
import torch

from lead_ray.data.folder import Folder
from lead_ray.models import weights
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.prepare import prepare


def save_trunk(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.save(path, Trunk(TrunkSettings(depth=18, width=0.125)), {})
    return path


def annotated_pictures(root: Path, points: np.ndarray, visible: np.ndarray, *, size: int = 136) -> Path:
    """Square pictures with these points [n, k, 2] and flags [n, k]; about a third of them are for tests."""
    names = [f"{number:02}.png" for number in range(len(points))]
    for seed, name in enumerate(names):
        layouts.picture(root / "raw" / name, size, size, seed=seed)
    flags = 2 * visible[..., None].astype(float)
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"image_id": number, "keypoints": np.concatenate(each, axis=-1).ravel().tolist()}
            for number, each in enumerate(zip(points, flags, strict=True))
        ],
    }
    (root / "marks.json").write_text(json.dumps(content))
    reader = Folder(raw=root / "raw", landmarks=root / "marks.json", test_fraction=0.3)
    prepare(reader, root / "shards", workers=0, size=size, encoding="png", progress=False)
    return root / "shards"
