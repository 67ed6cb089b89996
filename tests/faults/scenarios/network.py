"""The network between everybody and the server: cut, slow, in pieces, a black hole, deaf.

The faults are for a scene whose workers and producers reach the server through a proxy (`proxied`);
those of the soak are, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from tests.faults.harness import Scene
from tests.faults.producer import Kind
from tests.faults.proxy import Proxy
from tests.faults.registry import injector, scenario
from tests.faults.scenarios.server import MIXED, under_load, while_sending

_CUT_WITHIN = 4000  # bytes after which a connection is cut, at most

_proxies: WeakKeyDictionary[Scene, Proxy] = WeakKeyDictionary()


@contextlib.contextmanager
def proxied(scene: Scene) -> Iterator[Proxy]:
    """Have everybody reach the server through a proxy; workers must be gone before it is."""
    before = scene.url
    with Proxy(scene.server.socket, seed=scene.seed) as proxy:
        scene.url, _proxies[scene] = proxy.url, proxy
        try:
            yield proxy
        finally:
            scene.url = before
            del _proxies[scene]


@contextlib.contextmanager
def behind_a_proxy(scene: Scene) -> Iterator[Proxy]:
    """The same, and at the end everything is healed, worked off, and the workers leave."""
    with proxied(scene) as proxy:
        yield proxy
        proxy.heal()
        scene.drain()
        scene.stop()


def proxy_of(scene: Scene) -> Proxy:
    """Return the proxy that a scene is behind. Raises LookupError if it is not."""
    if (proxy := _proxies.get(scene)) is None:
        raise LookupError(f"{scene!r} is not behind a proxy: use `with proxied(scene):`")
    return proxy


def lasting(
    scene: Scene, inject: Callable[[Scene], Any], heal: Callable[[Scene, Any], None], shortest: float, longest: float
) -> Callable[[], None]:
    """Return a fault that lasts for a drawn time."""

    def fault() -> None:
        what = inject(scene)
        scene.sleep(scene.random.uniform(shortest, longest))
        heal(scene, what)

    return fault


# --- cut ----------------------------------------------------------------------------------------


@scenario("proxy-cut", limits={"effects_once": True})
def proxy_cut(scene: Scene) -> None:
    """Connections are cut, all or some, by FIN and by RST, between replies and in the middle of one."""
    with behind_a_proxy(scene):
        under_load(scene)
        while_sending(scene, lambda: cut(scene), pause=(0.1, 0.6))


@injector("proxy-cut", group="connections", slack=1.0, excuses="connections lost; unknown outcomes")
def cut(scene: Scene) -> None:
    """Cut some connections now, or soon."""
    scene.fault("proxy-cut")
    proxy, some = proxy_of(scene), scene.random.choice([None, 1, 3])
    match scene.random.choice(["now", "reply", "request"]):
        case "now":
            proxy.cut(count=some)
        case which:
            proxy.cut_after(scene.random.randint(1, _CUT_WITHIN), replies=which == "reply", count=some)


def accept(scene: Scene, _what: Any) -> None:
    """Welcome new connections again."""
    proxy_of(scene).accept()
    scene.note("back", "server")


@injector("proxy-refuse", group="server", lasts=(0.2, 3.0), slack=2.0, heal=accept, excuses="server away")
def refuse(scene: Scene) -> None:
    """Cut all connections, and refuse new ones."""
    scene.fault("proxy-refuse")
    scene.note("down", "server")
    proxy_of(scene).refuse()
    proxy_of(scene).cut()


@scenario("proxy-refuse", slack=3.0)
def proxy_refuse(scene: Scene) -> None:
    """Connections are cut, and new ones are refused, for up to two leases."""
    with behind_a_proxy(scene):
        under_load(scene)
        while_sending(scene, lasting(scene, refuse, accept, 0.2, 2 * scene.lease), pause=(0.5, 1.5))


# --- slow, and in pieces ------------------------------------------------------------------------


def hurry(scene: Scene, _what: Any) -> None:
    """Pass everything on at once again."""
    proxy_of(scene).delay(0.0)


@injector("proxy-delay", group="network", lasts=(0.5, 3.0), slack=0.5, heal=hurry, excuses="replies late by 0.6 s")
def delay(scene: Scene) -> None:
    """Be slow."""
    scene.fault("proxy-delay")
    proxy_of(scene).delay(scene.random.uniform(0.0, 0.1), jitter=scene.random.uniform(0.0, 0.2))


@scenario("proxy-delay", limits={"effects_once": True})
def proxy_delay(scene: Scene) -> None:
    """Every packet is late, by more and by less."""
    with behind_a_proxy(scene):
        under_load(scene)
        while_sending(scene, lasting(scene, delay, hurry, 0.5, 2.0), pause=(0.1, 0.5))


def join(scene: Scene, _what: Any) -> None:
    """Pass everything on in one piece again."""
    proxy_of(scene).split(0)


@injector("proxy-split", group="network", lasts=(0.2, 2.0), slack=0.5, heal=join, excuses="everything is slower")
def split(scene: Scene) -> None:
    """Tear everything into pieces of a few bytes."""
    scene.fault("proxy-split")
    proxy_of(scene).split(scene.random.choice([3, 16, 100]))


@scenario("proxy-split", limits={"effects_once": True})
def proxy_split(scene: Scene) -> None:
    """Everything arrives in pieces of a few bytes."""
    with behind_a_proxy(scene):
        under_load(scene)
        while_sending(scene, lasting(scene, split, join, 0.3, 1.5), pause=(0.0, 0.3))


# --- black holes --------------------------------------------------------------------------------


def let_go(scene: Scene, _what: Any) -> None:
    """Pass on what was held, and what comes."""
    proxy_of(scene).blackhole(requests=False, replies=False)
    scene.note("back", "server")


@injector("proxy-blackhole", group="server", lasts=(0.3, 3.0), slack=2.0, heal=let_go,
          excuses="server away; late commands of clients that gave up")  # fmt: skip
def blackhole(scene: Scene) -> None:
    """Hold everything, one way or both."""
    scene.fault("proxy-blackhole")
    scene.note("down", "server")
    _swallow(scene, proxy_of(scene))


def _swallow(scene: Scene, proxy: Proxy) -> None:
    requests, replies = scene.random.choice([(True, True), (True, False), (False, True)])
    proxy.blackhole(requests=requests, replies=replies)


@scenario("proxy-blackhole", slack=3.0)
def proxy_blackhole(scene: Scene) -> None:
    """Nothing passes, one way or both, for longer than replies and leases may take; then all of it does."""
    with behind_a_proxy(scene):
        under_load(scene, seconds=10)
        while_sending(scene, lasting(scene, blackhole, let_go, 0.5, 2 * scene.lease), pause=(0.5, 1.5))


@scenario("proxy-isolated", slack=3.0)
def proxy_isolated(scene: Scene) -> None:
    """One worker alone is cut off while it holds work: the others take over, and its late word does no harm."""
    slow = Kind(task="work", share=4, kwargs={"seconds": [0.2, 1.5]})
    failing = Kind(task="late_failure", share=1, kwargs={"seconds": [0.2, 1.5]})
    with Proxy(scene.server.socket, seed=scene.seed) as proxy:
        lonely = scene.start(url=proxy.url)
        scene.start_many(2)
        scene.produce(scene.load(*MIXED, slow, failing, rate=scene.tasks / 10, batch=20))
        scene.until_count("effect", min(20, scene.tasks // 2))

        def isolate() -> None:
            scene.fault("proxy-isolated")
            scene.note("cut", lonely.who)
            _swallow(scene, proxy)
            scene.sleep(scene.random.uniform(0.5, 2.5 * scene.lease))
            proxy.heal()
            scene.note("healed", lonely.who)

        while_sending(scene, isolate, pause=(0.5, 1.5))
        scene.drain()
        scene.stop()


# --- deaf ---------------------------------------------------------------------------------------


def hear(scene: Scene, _what: Any) -> None:
    """Lose no more replies."""
    proxy_of(scene).lose_replies(0.0)


@injector("proxy-drop-reply", group="connections", lasts=(0.1, 0.8), slack=1.0, heal=hear,
          excuses="connections lost; unknown outcomes")  # fmt: skip
def deafen(scene: Scene) -> None:
    """Let commands run and lose their replies, some or many."""
    scene.fault("proxy-drop-reply")
    proxy_of(scene).lose_replies(scene.random.choice([0.02, 0.1, 0.4]))


@scenario("proxy-drop-reply", limits={"effects_once": True}, slack=3.0)
def proxy_drop_reply(scene: Scene) -> None:
    """Commands run and nobody hears of it: what is said again is accepted once, and settled once."""
    with behind_a_proxy(scene):
        under_load(scene)
        while_sending(scene, lasting(scene, deafen, hear, 0.2, 0.8), pause=(0.1, 0.6))
