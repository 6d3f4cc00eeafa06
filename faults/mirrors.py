"""Faults of a mirror in front of a good registry: readers notice nothing, people are told."""

from functools import partial

from faults.image import EVER, ONCE, REST, WARM
from faults.model import Fault
from faults.mounting import only, other_manifest
from faults.stage import Stage
from tests.support import broken_answers as broken
from tests.support.broken_answers import HTML, PAGE
from tests.support.fake_registry import Break, always, honest, sha256
from tests.support.http_server import Reply

DISTRUSTED = "right, mirror distrusted, named in log and status"
PASSED_OVER = "right, mirror not asked again and again"

MOST_ASKED = 10
"""Requests for blobs at a mirror that fails, of the dozens that it would get if it did not."""


def behind(breaks: Break, stage: Stage, name: str = "") -> str:
    """All is read through a mirror that is broken from the beginning."""
    registry, mirror = stage.registry(), stage.registry()
    mirror.registry.breaks = breaks
    name = name and f"{registry.host}/{name}"
    with stage.mounted(name or registry.host, *stage.mirrored(registry, mirror.host)) as mount:
        # One after the other: many requests for the mirror to be asked first for.
        seen = {mount.outcome(name) for name in stage.image.files}
        state = mount.host("mirror")
        distrusted = state["state"] == "distrusted"
        named = distrusted and mount.tells(f"{mirror.host}: gave a wrong answer")
        own = mount.host()
    if own["state"] != "ok" or own["wrong_answers"]:
        return f"the registry is blamed: {own}"
    words = [" and ".join(sorted(seen))]
    if distrusted:
        words.append("mirror distrusted")
        words.append("named in log and status" if named and state["last_problem"] else "not named")
    else:
        asked = len(mirror.blob_requests())
        often = "not asked again and again" if asked <= MOST_ASKED else f"asked {asked} times"
        words.append(f"mirror {often}")
    return ", ".join(words)


def lies_about_a_digest(stage: Stage) -> str:
    """It gives another manifest than that of the digest."""
    name = f"faults/image@{sha256(stage.image.manifest)}"
    return behind(only("manifests", other_manifest(stage)), stage, name)


def dies(stage: Stage) -> str:
    """The mirror dies while it is read from."""
    registry, mirror = stage.registry(), stage.registry()
    with stage.mounted(registry.host, *stage.mirrored(registry, mirror.host)) as mount:
        seen = [mount.outcome(WARM)]
        asked = len(registry.blob_requests())
        mirror.stop()
        seen.append(mount.outcome())
    return (
        f"{' then '.join(dict.fromkeys(seen))}, registry asked {'before' if asked else 'only then'}"
    )


def one_left(stage: Stage) -> str:
    """The registry dies while the mirror lives."""
    registry, mirror = stage.registry(), stage.registry()
    options = stage.mirrored(registry, mirror.host)
    registry.stop()
    with stage.mounted(registry.host, *options, "--timeout", "5") as mount:
        return mount.outcome()


def both(stage: Stage) -> str:
    """Mirror and registry are gone, and come back."""
    registry, mirror = stage.registry(), stage.registry()
    options = (*stage.mirrored(registry, mirror.host), "--timeout", "3")
    with stage.mounted(registry.host, *options) as mount:
        mount.outcome(WARM)
        registry.stop()
        mirror.stop()
        gone = mount.outcome(EVER)
        mirror.start()
        back = mount.recovers(EVER)
        registry.start()
    return f"gone: {gone}; mirror back: {back}"


def turns_liar(stage: Stage) -> str:
    """A mirror that was good begins to lie, and while it is distrusted the registry fails."""
    registry, mirror = stage.registry(), stage.registry()
    options = (*stage.mirrored(registry, mirror.host), "--timeout", "3")
    with stage.mounted(registry.host, *options) as mount:
        seen = [mount.outcome(WARM)]
        mirror.registry.breaks = broken.wrong_bytes
        seen.append(mount.outcome(ONCE))
        registry.stop()
        alone = mount.outcome(EVER)
        mirror.registry.breaks = honest
        seen.append(mount.recovers(EVER, REST))
    return f"{' then '.join(dict.fromkeys(seen))}; only the liar left: {alone}"


def other_tag(stage: Stage) -> str:
    """A mirror that may not say what a tag means says it wrong."""
    registry, mirror = stage.registry(), stage.registry()
    mirror.registry.breaks = other_manifest(stage)
    text = f'[host."http://{mirror.host}"]\ncapabilities = ["pull"]'
    with stage.mounted(registry.host, *stage.hosts(registry.host, text)) as mount:
        asked = [r for r in mirror.requests if r.path.endswith("/manifests/v1")]
        right = mount.status()["digest"] == sha256(stage.image.manifest)
        return f"{mount.outcome()}, {'registry' if right and not asked else 'mirror'} believed"


def mirror(name: str, does: str, breaks: Break | Reply, expected: str = PASSED_OVER) -> Fault:
    """A fault of this table."""
    return Fault(f"mirror-{name}", does, expected, partial(behind, always(breaks)))


FAULTS = (
    mirror("wrong-bytes", "wrong bytes", only("blobs", broken.wrong_bytes), DISTRUSTED),
    Fault(
        "mirror-manifest",
        "another manifest than that of the digest",
        DISTRUSTED,
        lies_about_a_digest,
    ),
    mirror("other-size", "blobs of another size", only("blobs", broken.other_size), DISTRUSTED),
    mirror("long", "more bytes than asked for", only("blobs", broken.too_long), DISTRUSTED),
    mirror("gzip", "compresses on the way", only("blobs", broken.squeezed), DISTRUSTED),
    mirror("404", "has nothing", Reply(404)),
    mirror("400", "400 to everything", Reply(400)),
    mirror("401", "wants a login that there is not", Reply(401)),
    mirror("429", "429 to everything", Reply(429)),
    mirror("503", "503 to everything", Reply(503)),
    mirror("silence", "never answers", Reply(hang=True)),
    mirror("stall", "stalls in the middle of each body", broken.half(stall=True)),
    mirror("cut", "cuts each body short", broken.half(cut=True)),
    mirror("web-page", "an HTML page for everything", Reply(200, PAGE, HTML)),
    mirror("redirect-loop", "redirects to itself", broken.loop),
    Fault(
        "mirror-dies", "the mirror dies between two reads", "right, registry asked only then", dies
    ),
    Fault("mirror-alone", "the registry is gone, the mirror is there", "right", one_left),
    Fault(
        "mirror-tag",
        "a mirror without the capability resolve has another image under the tag",
        "right, registry believed",
        other_tag,
    ),
    Fault(
        "mirror-and-registry", "both are gone for some time", "gone: EIO; mirror back: right", both
    ),
    Fault(
        "mirror-turns-liar",
        "a mirror begins to lie, then the registry dies",
        "right; only the liar left: EIO",
        turns_liar,
    ),
)
