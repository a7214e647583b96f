"""guard schema: the JSON schema of configs."""

from typing import Annotated

import typer

from guard.cli.options import Debug, Plugins


def print_schema(
    train: Annotated[bool, typer.Option("--train", help="Of what guard train reads, not guard evaluate.")] = False,
    claim: Annotated[bool, typer.Option("--claim", help="Of what guard claim reads, not guard evaluate.")] = False,
    plugin: Plugins = None,
    debug: Debug = False,
) -> None:
    """Print the JSON schema of configs.

    It holds the installed components; an editor completes and checks a config with it.
    """
    import json

    from guard.claims.config import ClaimConfig
    from guard.config import EvaluationConfig
    from guard.configschema import schema
    from guard.registry import Registry
    from guard.trainingconfig import TrainingConfig

    config = TrainingConfig if train else ClaimConfig if claim else EvaluationConfig
    print(json.dumps(schema(Registry.load(plugin or []), config), indent=2))
