"""The anatomy of the phantoms: an upper abdomen, and what an ultrasound probe sees of a liver."""

from __future__ import annotations

import numpy as np

from promptseg.demo.shapes import Ellipsoid, Structure

LONG = 1e4  # mm; a radius that makes an ellipsoid a cylinder within the volume


def abdomen(rng: np.random.Generator) -> tuple[Structure, ...]:
    """A patient of random build, lying on the back; x runs to the patient's left, y to the back.

    Labelled are the liver without its lesion, both kidneys, and the lesion.
    """
    build = rng.uniform(0.92, 1.06)
    shift = rng.uniform(-8, 8, 3)

    def at(z: float, y: float, x: float, spread: float = 0.0) -> tuple[float, float, float]:
        moved = np.array([z, y, x]) * (1.0, build, build) + shift + rng.uniform(-1, 1, 3) * spread
        return tuple(float(v) for v in moved)

    def ellipsoid(center, radii, degrees=(0.0, 0.0, 0.0), spread=0.0, turn=0.0) -> Ellipsoid:
        sizes = np.array(radii) * build * rng.uniform(1 - spread / 60, 1 + spread / 60, 3)
        turned = np.array(degrees) + rng.uniform(-turn, turn, 3)
        return Ellipsoid(center=center, radii=tuple(map(float, sizes)), degrees=tuple(turned))

    fat = rng.uniform(6, 14)  # mm under the skin
    middle = at(0, 0, 0)
    outer = (80.0, 98.0)  # y, x
    skin, wall, cavity = (
        ellipsoid(middle, (LONG, outer[0] - depth, outer[1] - depth)) for depth in (0, fat, fat + 9)
    )

    lobe_center = at(4, -6, -48, spread=5)
    right_lobe = ellipsoid(lobe_center, (56, 54, 44), (8, 0, 0), spread=5, turn=8)
    left_lobe = ellipsoid(at(14, -38, -4, spread=5), (32, 22, 48), (14, 0, 0), spread=6, turn=8)
    radius = rng.uniform(15, 20)
    lesion_center = np.array(lobe_center) + rng.uniform((-14, -20, -10), (14, 2, 10))
    lesion_radii = radius * rng.uniform(0.85, 1.15, 3)
    kidneys = tuple(
        ellipsoid(at(z, 34, side * 47, spread=4), (42, 19, 23), (side * 28, 0, side * 6), 5, 6)
        for z, side in ((-18, -1), (-10, 1))
    )
    sinuses = tuple(
        Ellipsoid(
            center=tuple(
                np.array(kidney.center) + (0, -5, 9 * (1 if kidney.center[2] < 0 else -1))
            ),
            radii=tuple(np.array(kidney.radii) * (0.45, 0.42, 0.42)),
            degrees=kidney.degrees,
        )
        for kidney in kidneys
    )
    stomach = ellipsoid(at(8, -32, 44, spread=5), (44, 24, 32), (-18, 0, 0), spread=6, turn=10)
    bubble = Ellipsoid(
        center=tuple(np.array(stomach.center) - (0, 0.55 * stomach.radii[1], 0)),
        radii=tuple(np.array(stomach.radii) * (0.7, 0.35, 0.6)),
    )
    bowel = tuple(
        ellipsoid(at(z, y, x, spread=6), (16, 11, 18), turn=30)
        for z, y, x in ((-44, -30, 18), (-48, -22, 52), (-38, -44, 42), (-54, -40, -6))
    )
    spine_y, disc_phase = 48, rng.uniform(-15, 15)
    vertebrae = tuple(at(z + disc_phase, spine_y, 0) for z in (-105, -70, -35, 0, 35, 70))
    angles = np.radians(np.arange(-150, 151, 25.0) + rng.uniform(-8, 8))
    rib_ring = (outer[0] - fat - 5, outer[1] - fat - 5)
    ribs = tuple(
        ellipsoid(
            at(z, -np.cos(a) * rib_ring[0] / build, np.sin(a) * rib_ring[1] / build),
            (10, 3.5, 10),
            (float(np.degrees(np.arctan2(np.sin(a) * rib_ring[0], np.cos(a) * rib_ring[1]))), 0, 0),
        )
        for i, a in enumerate(angles)
        if abs(a) > np.radians(40)
        for z in np.arange(-80, 81, 32) + 16 * (i % 2)
    )
    psoas = tuple(ellipsoid(at(-30, 44, side * 24), (LONG, 12, 12)) for side in (-1, 1))
    erector = tuple(ellipsoid(at(0, 66, side * 26), (LONG, 12, 20)) for side in (-1, 1))
    return (
        Structure(tissue="fat", parts=(skin,)),
        Structure(tissue="muscle", parts=(wall,)),
        Structure(tissue="fat", parts=(cavity,)),
        Structure(tissue="muscle", parts=(*psoas, *erector), within=wall),
        *(Structure(tissue="bone", parts=(rib,), within=wall) for rib in ribs),
        Structure(tissue="bowel", parts=bowel, within=cavity),
        Structure(tissue="muscle", parts=(stomach,), within=cavity),
        Structure(tissue="fluid", parts=(_shrunk(stomach, 4.0),), within=cavity),
        Structure(tissue="air", parts=(bubble,), within=_shrunk(stomach, 4.0)),
        Structure(
            tissue="spleen",
            parts=(ellipsoid(at(16, 22, 70, 4), (36, 34, 17), (28, 0, 0), 6, 8),),
            within=cavity,
        ),
        Structure(tissue="liver", parts=(right_lobe, left_lobe), within=cavity, label="liver"),
        Structure(
            tissue="vessel",
            parts=(ellipsoid(at(0, 22, 9), (LONG, 8, 8)), ellipsoid(at(0, 20, -17), (LONG, 8, 10))),
        ),
        Structure(
            tissue="disc",
            parts=(ellipsoid(at(0, spine_y, 0), (LONG, 14, 17)),),
        ),
        Structure(tissue="bone", parts=tuple(ellipsoid(v, (18, 16, 19)) for v in vertebrae)),
        Structure(tissue="marrow", parts=tuple(ellipsoid(v, (14, 13, 16)) for v in vertebrae)),
        Structure(
            tissue="bone",
            parts=(
                ellipsoid(at(0, spine_y + 20, 0), (LONG, 11, 13)),
                *(ellipsoid((v[0] - 8, v[1] + 34, v[2]), (12, 9, 4)) for v in vertebrae),
            ),
        ),
        Structure(tissue="canal", parts=(ellipsoid(at(0, spine_y + 20, 0), (LONG, 8, 9)),)),
        Structure(tissue="kidney", parts=kidneys, within=cavity, label="kidney"),
        Structure(tissue="sinus", parts=sinuses, label="kidney"),
        Structure(
            tissue="lesion",
            parts=(Ellipsoid(center=tuple(lesion_center), radii=tuple(lesion_radii)),),
            within=right_lobe,
            label="lesion",
        ),
    )


def liver_under_a_probe(rng: np.random.Generator) -> tuple[Structure, ...]:
    """Liver with a lesion, the right kidney and the gallbladder below an abdominal wall.

    y runs away from the probe, which touches the skin at the top of the volume.
    """
    shift = rng.uniform(-4, 4, 3)

    def ellipsoid(center, radii, degrees=(0.0, 0.0, 0.0), turn=6.0) -> Ellipsoid:
        moved = np.array(center) + shift + rng.uniform(-1.5, 1.5, 3)
        return Ellipsoid(
            center=tuple(map(float, moved)),
            radii=tuple(map(float, np.array(radii) * rng.uniform(0.92, 1.08, 3))),
            degrees=tuple(np.array(degrees) + rng.uniform(-turn, turn, 3)),
        )

    liver = ellipsoid((0, -4, -8), (46, 34, 50), (6, 0, 0))
    kidney = ellipsoid((2, 27, 18), (22, 14, 27), (16, 0, 0))
    sinus = Ellipsoid(
        center=kidney.center,
        radii=tuple(np.array(kidney.radii) * (0.4, 0.36, 0.5)),
        degrees=kidney.degrees,
    )
    lesion = ellipsoid(
        np.array((0, -6, -22)) + rng.uniform((-6, -5, -6), (6, 5, 6)),
        rng.uniform(8.5, 10.5) * np.ones(3),
    )
    wall = Ellipsoid(center=(0, -54, 0), radii=(LONG, 17, LONG))
    return (
        Structure(tissue="fat", parts=(Ellipsoid(center=(0, 0, 0), radii=(LONG,) * 3),)),
        Structure(tissue="diaphragm", parts=(_shrunk(liver, -3.0),)),
        Structure(tissue="liver", parts=(liver,), label="liver"),
        Structure(
            tissue="vessel",
            parts=(
                ellipsoid((2, 4, -30), (3.5, 4, 24), (30, 0, 0)),
                ellipsoid((-12, -14, 14), (3.5, 3.5, 20), (-25, 0, 0)),
            ),
            within=liver,
            label="liver",
        ),
        Structure(tissue="fluid", parts=(ellipsoid((-4, -6, 26), (14, 9, 11), (20, 0, 0)),)),
        Structure(tissue="diaphragm", parts=(_shrunk(kidney, -1.5),)),
        Structure(tissue="kidney", parts=(kidney,), label="kidney"),
        Structure(tissue="sinus", parts=(sinus,), label="kidney"),
        Structure(tissue="lesion", parts=(lesion,), within=liver, label="lesion"),
        Structure(tissue="muscle", parts=(wall,)),
        Structure(tissue="fat", parts=(_shrunk(wall, 8.0),)),
    )


def _shrunk(ellipsoid: Ellipsoid, mm: float) -> Ellipsoid:
    """The same ellipsoid with its radii smaller by `mm`."""
    radii = tuple(radius - mm for radius in ellipsoid.radii)
    return Ellipsoid(center=ellipsoid.center, radii=radii, degrees=ellipsoid.degrees)
