"""guard evaluates defenses of image classifiers against adversarial examples.

    import guard
    threat = guard.ThreatModel(norm="linf", epsilon=8 / 255)
    report = guard.evaluate(model, (images, labels), attacks=["fgsm", "pgd"], threat=threat)

Images are float32 in [0, 1], shape (N, C, H, W); models return logits. Everything is loaded when it is first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from guard.api import craft as craft
    from guard.api import evaluate as evaluate
    from guard.api import fit as fit
    from guard.api import load_run as load_run
    from guard.api import train as train
    from guard.attack import Attack as Attack
    from guard.attack import Cost as Cost
    from guard.attack import IterativeAttack as IterativeAttack
    from guard.attack import Memory as Memory
    from guard.attack import MinimalAttack as MinimalAttack
    from guard.attack import Now as Now
    from guard.attack import attempts as attempts
    from guard.cascade import Cascade as Cascade
    from guard.claiming import claim as claim
    from guard.claims.verdict import Verdict as Verdict
    from guard.classifier import ImageModel as ImageModel
    from guard.classifier import assemble as assemble
    from guard.classifier import model as model
    from guard.component import Component as Component
    from guard.defense import Defense as Defense
    from guard.defense import Stack as Stack
    from guard.defense import Step as Step
    from guard.errors import ContractError as ContractError
    from guard.errors import GuardError as GuardError
    from guard.errors import InputError as InputError
    from guard.errors import NotApplicable as NotApplicable
    from guard.errors import PluginError as PluginError
    from guard.errors import UnknownName as UnknownName
    from guard.goal import Goal as Goal
    from guard.hookspecs import hookimpl as hookimpl
    from guard.layers import held as held
    from guard.learned import LearnedAttack as LearnedAttack
    from guard.learned_defense import LearnedDefense as LearnedDefense
    from guard.loading import load as load
    from guard.losses import LOSSES as LOSSES
    from guard.losses import Loss as Loss
    from guard.losses import LossName as LossName
    from guard.progress import Progress as Progress
    from guard.recipe import Training as Training
    from guard.registry import Registry as Registry
    from guard.report.report import Report as Report
    from guard.rng import Rng as Rng
    from guard.source import Data as Data
    from guard.source import DatasetSource as DatasetSource
    from guard.source import ModelSource as ModelSource
    from guard.source import Split as Split
    from guard.spectrum import dct2 as dct2
    from guard.spectrum import idct2 as idct2
    from guard.threat import Amount as Amount
    from guard.threat import Norm as Norm
    from guard.threat import ThreatModel as ThreatModel
    from guard.victim import Access as Access
    from guard.victim import Victim as Victim
else:
    # module of each public name; under `not TYPE_CHECKING`, or a misspelt guard.Atack would type-check as Any
    _HOME = {
        "Access": "victim",
        "Amount": "threat",
        "Attack": "attack",
        "Cascade": "cascade",
        "Component": "component",
        "ContractError": "errors",
        "Cost": "attack",
        "Data": "source",
        "DatasetSource": "source",
        "Defense": "defense",
        "Goal": "goal",
        "GuardError": "errors",
        "ImageModel": "classifier",
        "InputError": "errors",
        "IterativeAttack": "attack",
        "LOSSES": "losses",
        "LearnedAttack": "learned",
        "LearnedDefense": "learned_defense",
        "Loss": "losses",
        "LossName": "losses",
        "Memory": "attack",
        "MinimalAttack": "attack",
        "ModelSource": "source",
        "Norm": "threat",
        "NotApplicable": "errors",
        "Now": "attack",
        "PluginError": "errors",
        "Progress": "progress",
        "Registry": "registry",
        "Report": "report.report",
        "Rng": "rng",
        "Split": "source",
        "Stack": "defense",
        "Step": "defense",
        "ThreatModel": "threat",
        "Training": "recipe",
        "UnknownName": "errors",
        "Verdict": "claims.verdict",
        "Victim": "victim",
        "assemble": "classifier",
        "attempts": "attack",
        "claim": "claiming",
        "craft": "api",
        "dct2": "spectrum",
        "evaluate": "api",
        "fit": "api",
        "held": "layers",
        "hookimpl": "hookspecs",
        "idct2": "spectrum",
        "load": "loading",
        "load_run": "api",
        "model": "classifier",
        "train": "api",
    }

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name not in _HOME:
            raise AttributeError(f"module 'guard' has no attribute '{name}'")
        value = getattr(import_module(f"guard.{_HOME[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted(__all__)


__all__ = [
    "LOSSES",
    "Access",
    "Amount",
    "Attack",
    "Cascade",
    "Component",
    "ContractError",
    "Cost",
    "Data",
    "DatasetSource",
    "Defense",
    "Goal",
    "GuardError",
    "ImageModel",
    "InputError",
    "IterativeAttack",
    "LearnedAttack",
    "LearnedDefense",
    "Loss",
    "LossName",
    "Memory",
    "MinimalAttack",
    "ModelSource",
    "Norm",
    "NotApplicable",
    "Now",
    "PluginError",
    "Progress",
    "Registry",
    "Report",
    "Rng",
    "Split",
    "Stack",
    "Step",
    "ThreatModel",
    "Training",
    "UnknownName",
    "Verdict",
    "Victim",
    "__version__",
    "assemble",
    "attempts",
    "claim",
    "craft",
    "dct2",
    "evaluate",
    "fit",
    "held",
    "hookimpl",
    "idct2",
    "load",
    "load_run",
    "model",
    "train",
]
