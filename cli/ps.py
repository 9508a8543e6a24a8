"""`tokenbus ps`: who is alive on the bus, once."""

import orjson
from pydantic import Field
from rich.console import Console

from cli.bus import BusSettings, on_bus
from registry.table import render, rows


class PsSettings(BusSettings):
    """Print the table of living workers. `python -m registry` keeps it up to date."""

    json_output: bool = Field(False, validation_alias="json", description="print a JSON list of objects")


async def run(settings: PsSettings) -> None:
    async with on_bus(settings) as (redis, keys):
        found = await rows(redis, keys)
    if settings.json_output:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        Console().print(render(found))
