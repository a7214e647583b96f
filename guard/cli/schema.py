"""guard schema: the JSON schema of configs."""

from guard.cli.options import Debug, Plugins


def print_schema(plugin: Plugins = None, debug: Debug = False) -> None:
    """Print the JSON schema of configs.

    It holds the installed components; an editor completes and checks a config with it.
    """
    import json

    from guard.configschema import schema
    from guard.registry import Registry

    print(json.dumps(schema(Registry.load(plugin or [])), indent=2))
