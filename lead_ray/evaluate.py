"""Errors of a frozen encoder: landmark regression and landmark matching.

$ lead-ray evaluate runs/stage2-lead-0123abcd --task matching --data mafl
$ lead-ray evaluate runs/stage2-lead-0123abcd --task regression --data mafl --annotations 1 10 --seeds 0 1 2
$ lead-ray evaluate runs/stage2-lead-0123abcd --task matching --data mafl --features untrained    # a floor
$ lead-ray evaluate runs/stage1-lead-0123abcd --task regression --data mafl --features nmf --reduce.dim 64
"""

from pathlib import Path
from typing import Any

from lead_ray import storage
from lead_ray.artefacts import read_json, write_json
from lead_ray.errors import for_people
from lead_ray.evaluation import measure
from lead_ray.evaluation.details import details, save
from lead_ray.evaluation.settings import Evaluate, Features, Reduce, result_name, told
from lead_ray.images import shards
from lead_ray.machine import environment
from lead_ray.usage import parsed

__all__ = ["Evaluate", "Features", "Reduce", "details", "evaluate", "evaluate_each", "numbers", "paths"]


def evaluate(settings: Evaluate) -> dict[str, Any]:
    """Measure, write the run's eval/<task>-<data>-....json, return its content; a result that exists is read.

    Raises: ValueError if several numbers of annotations are given.
    """
    if len(several := settings.each()) > 1:
        raise ValueError(f"annotations must be one number here, got {settings.annotations}: use evaluate_each()")
    return evaluate_each(several[0])[0]


def evaluate_each(settings: Evaluate) -> list[dict[str, Any]]:
    """evaluate() for every number of annotations; what is missing is measured together, and kept as it comes."""
    return [result for _, result in _kept(settings)]


def _kept(settings: Evaluate) -> list[tuple[Path, dict[str, Any]]]:
    several = settings.each()
    where = paths(settings)
    missing = [(path, single) for path, single in zip(where, several, strict=True) if not storage.exists(path)]
    how = {"regression": measure.regressions, "matching": measure.matchings}[settings.task]
    dataset = shards.read_manifest(settings.data).dataset
    for which, result, arrays in how([single for _, single in missing]) if missing else ():
        path, single = missing[which]
        save(path, arrays)  # before what says that there is a result
        head = {"task": single.task, "features": single.features, "data": dataset}
        write_json(path, {**head, **result, "settings": told(single), "environment": environment()})
    return [(path, read_json(path)) for path in where]


def paths(settings: Evaluate) -> list[Path]:
    """Where the result of every number of annotations is, or will be; details() reads what lies beside it."""
    manifest = shards.read_manifest(settings.data)
    return [settings.folder / "eval" / f"{result_name(single, manifest)}.json" for single in settings.each()]


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """What evaluate() measured, without how and where."""
    return {name: value for name, value in result.items() if name not in ("settings", "environment")}


MEANING = {
    "cl_diff_error": "px as published, of points found in another image: what tables print",
    "cl_same_error": "px as published, found in the same image, warped once more",
    "cl_diff_floor": "what a perfect matcher would have on this grid",
    "cl_diff_baseline": "what the same position has",
    "dve_diff_error": "the same with raw products on the features' own, coarser grid",
}
"""Of numbers whose names do not tell."""


def main(arguments: list[str] | None = None) -> None:
    with for_people("evaluate"):
        kept = _kept(parsed(Evaluate, arguments, __doc__, "lead-ray evaluate"))
    for path, result in kept:
        for name, value in numbers(result).items():
            if name == "runs":  # numbers of every seed, by name, are for the file
                continue
            rows = value if name == "by_factor" else [value]
            for row in rows:
                print(f"{name:24} {_written(row)}{'  ' * (name in MEANING)}{MEANING.get(name, '')}")
        print(f"{'kept in':24} {path}")


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {_written(part).strip()}" for name, part in value.items())
    return f"{value:8.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
