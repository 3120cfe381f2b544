"""The page about routing: its tables are complete, its example is a sound router."""

import random
import re
from inspect import signature
from pathlib import Path

from routing_views import context, decodes, random_fleet, random_job, view

from slo_opt.routing.interface import Placement, Role, RoutingPolicy
from slo_opt.routing.polyserve import PolyServeRouter
from slo_opt.routing.registry import ROUTERS

PAGE = (Path(__file__).parents[2] / "docs" / "routing.md").read_text()
BLOCK = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]


def own_router() -> RoutingPolicy:
    scope: dict[str, object] = {"__name__": "example"}
    exec(BLOCK, scope)
    return scope["FewestOfItsClass"](context())  # type: ignore[operator]


def test_every_router_has_its_row():
    tables = PAGE.split("## PolyServe's mechanisms")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", tables, re.MULTILINE)) == set(ROUTERS)


def test_every_switch_of_polyserve_has_its_row():
    switches = {name for name, parameter in signature(PolyServeRouter).parameters.items() if parameter.default is True}
    table = PAGE.split("## PolyServe's mechanisms")[1].split("## Write")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)) == switches


def test_the_example_does_what_it_says():
    router = own_router()
    loose = decodes(1, 0.1)[0]
    fleet = [view("a", decodes(3)), view("b", decodes(9, 0.1))]
    assert router.route(decodes(1)[0], fleet, 0.0) == Placement("b")
    assert router.route(loose, fleet, 0.0) == Placement("a")


def test_the_example_answers_with_what_it_is_offered():
    router = own_router()
    for seed in range(50):
        rng = random.Random(seed)
        role, fleet = random_fleet(rng, 0.0)
        for one in fleet:
            one.id = f"{one.id}-{seed}"
        job = random_job(rng, "j", fleet[0].engine, 0.0, decoding=role is Role.DECODE, inside=False)
        assert router.route(job, fleet, 0.0).replica in {one.id for one in fleet}
