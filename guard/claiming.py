"""The public function that checks a claim."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from guard import configfile
from guard.api import perform
from guard.claims.config import ClaimConfig
from guard.claims.running import run
from guard.claims.verdict import Verdict
from guard.config import EvaluationConfig
from guard.errors import GuardError
from guard.evaluation import folder
from guard.evaluation.result import Results
from guard.inputs import live_dataset, live_knowledge, live_model
from guard.progress import Progress
from guard.registry import Registry
from guard.report.claim import save


def claim(
    claim: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    plugins: Iterable[str | Path] = (),
    progress: Progress | None = None,
) -> Verdict:
    """Check a sentence that people believe about defenses: is it supported, contradicted, or left undecided?

    `claim`: a config file, or a mapping with its keys, in which names, mappings and instances mix as in `evaluate`.
    With `out` the verdict is written there, and beside it an evaluation for each seed.

    Raises InputError for input that cannot be checked; a cell that is INVALID leaves the claim undecided.
    """
    if not isinstance(claim, Mapping):
        config, registry = configfile.read(ClaimConfig, claim, plugins=[*plugins])
    else:
        files = [*claim.get("plugins", ()), *map(str, plugins)]
        registry = Registry.load(files)
        keys = {name: _live(part) if name in ("evaluate", "shuffle", "cues") else part for name, part in claim.items()}
        config = ClaimConfig.of(keys | {"plugins": files}, registry.create)
    return perform_claim(config, registry, out=None if out is None else Path(out).expanduser(), progress=progress)


def perform_claim(
    config: ClaimConfig, registry: Registry, *, out: Path | None = None, progress: Progress | None = None
) -> Verdict:
    """Check a claim that has been read, and write what came out into `out`, which belongs to it from then on."""
    if out is not None:
        folder.claim(out, config)

    def evaluated(settings: EvaluationConfig, name: str, keep_images: bool) -> Results:
        return perform(settings, registry, out=out and out / name, keep_images=keep_images, progress=progress)

    try:
        verdict = run(config, evaluated, progress or Progress())
    except GuardError:
        if out is not None and not (out / "claim.json").exists():
            (out / "config.json").unlink(missing_ok=True)  # a mended claim may have the folder
        raise
    if out is not None:
        save(verdict, out)
    return verdict


def _live(part: Any) -> Any:
    """A section of a claim with what is live in it wrapped."""
    if not isinstance(part, Mapping):
        return part
    model = part.get("model")
    wrapped = {"dataset": live_dataset(part["dataset"], None, model)} if "dataset" in part else {}
    if model is not None:
        wrapped["model"] = [*map(live_model, model)] if isinstance(model, list | tuple) else live_model(model)
    if "knowledge" in part:
        wrapped["knowledge"] = live_knowledge(part["knowledge"])
    return {**part, **wrapped}
